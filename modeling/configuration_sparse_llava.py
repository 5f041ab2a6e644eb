"""Configuration of a sparse LLaVA: LLaVA's own, and the visual plan that its weights were made for."""

from huggingface_hub.dataclasses import strict
from transformers.models.llava.configuration_llava import LlavaConfig


@strict
class SparseLlavaConfig(LlavaConfig):
    """`visual_plan` is the plan's JSON form; None is the dense plan."""

    model_type = "sparse_llava"

    visual_plan: dict | None = None
