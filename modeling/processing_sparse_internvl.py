"""InternVL's processor, as sparse checkpoints carry it."""

from transformers.models.internvl.processing_internvl import InternVLProcessor

from .sparse_processor import SparseProcessorMixin


class SparseInternVLProcessor(SparseProcessorMixin, InternVLProcessor):
    """InternVL's processor. An empty list of pictures, videos or sounds means that there are none."""


__all__ = ["SparseInternVLProcessor"]
