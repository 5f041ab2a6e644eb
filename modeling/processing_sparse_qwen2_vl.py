"""Qwen2-VL's processor, as sparse checkpoints carry it."""

from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor

from .sparse_processor import SparseProcessorMixin


class SparseQwen2VLProcessor(SparseProcessorMixin, Qwen2VLProcessor):
    """Qwen2-VL's processor. An empty list of pictures, videos or sounds means that there are none."""


__all__ = ["SparseQwen2VLProcessor"]
