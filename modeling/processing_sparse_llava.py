"""LLaVA's processor, as sparse checkpoints carry it."""

from transformers.models.llava.processing_llava import LlavaProcessor

from .sparse_processor import SparseProcessorMixin


class SparseLlavaProcessor(SparseProcessorMixin, LlavaProcessor):
    """LLaVA's processor. An empty list of pictures, videos or sounds means that there are none."""


__all__ = ["SparseLlavaProcessor"]
