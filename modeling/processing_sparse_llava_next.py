"""LLaVA-NeXT's processor, as sparse checkpoints carry it."""

from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

from .sparse_processor import SparseProcessorMixin


class SparseLlavaNextProcessor(SparseProcessorMixin, LlavaNextProcessor):
    """LLaVA-NeXT's processor. An empty list of pictures, videos or sounds means that there are none."""


__all__ = ["SparseLlavaNextProcessor"]
