"""What a family of models must offer. A family is a stock multimodal model of transformers, such as LLaVA, made sparse.

Each file modeling_sparse_*.py holds one family: a class that generates, which offers `Family`, and the model in it,
which offers `FamilyModel`. The mixins of sparse_multimodal.py, planned_model.py and class_attention.py already offer
what most families have alike. checkpoints/families.py finds the families, and refuses one that lacks a member.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling

from .class_attention import TowerBlock
from .sparse_decoder import SparseDecoderMixin
from .visual_layout import Grid, Images
from .visual_plan import VisualPlan


class FamilyModel(Protocol):
    """The model without its language modelling head: vision tower, projector and decoder."""

    language_model: SparseDecoderMixin
    """The text decoder."""

    def class_blocks(self) -> list[TowerBlock]:
        """Returns the vision tower's blocks whose class token may rank visual tokens, first to last.

        There are none if the tower has no class token.
        """

    def get_image_features(self, **inputs: Any) -> BaseModelOutputWithPooling:
        """Returns the features of pictures after tower and projector, as in the stock class.

        A family whose tower has a class token also takes `tower_layers`, the number of last blocks for which it gives
        the class token's attention (`ScoredFeatures`). None means as many as the plan in force asks for.
        """

    @property
    def visual_plan(self) -> VisualPlan:
        """The plan in force."""

    def set_visual_plan(self, plan: VisualPlan) -> None:
        """Puts `plan` in force and writes it to the config. Raises UserError if it does not fit the model."""

    def use_plan(self, plan: VisualPlan) -> AbstractContextManager[None]:
        """Puts `plan` in force inside the block, in this thread or task alone.

        Raises:
            UserError: the plan does not fit the model.
        """

    def __call__(self, **inputs: Any) -> BaseModelOutputWithPast:
        """Runs tower, projector and decoder. It takes what the family's forward takes."""


class Family(Protocol):
    """The class that generates, `Sparse...ForConditionalGeneration`."""

    stock_class: ClassVar[type]
    """The class of transformers that runs the dense model. Its config class has the stock model type."""

    processor_class: ClassVar[type]
    """The stock processor class as checkpoints carry it."""

    model_class: ClassVar[type]
    """The class of the model in it, a `FamilyModel`."""

    text_types: ClassVar[tuple[str, ...]]
    """The stock model types of the text models that the family may have."""

    @staticmethod
    def image_grids(config: PreTrainedConfig, height: int, width: int) -> tuple[Grid, ...]:
        """Returns the grids, in (rows, columns) of visual tokens, of a picture of height x width pixels.

        Raises:
            UserError: the config keeps or drops a class token so that visual tokens would be no grid.
        """

    @staticmethod
    def vision_macs(config: PreTrainedConfig, images: Images) -> int:
        """Returns the multiply-accumulates of vision tower and projector for pictures with these grids.

        Raises:
            UserError: the cost of the vision tower is not known.
        """

    @staticmethod
    def random_pictures(
        config: PreTrainedConfig, images: Images, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Returns inputs of the forward, by name, for random pictures that become these grids. Benchmarks use them."""

    @staticmethod
    def visual_rows(image: Sequence[Grid]) -> torch.Tensor:
        """Returns which rows of a picture in a prompt are visual tokens, [rows] bool. The others are text to the plan.

        Args:
            image: the grids of the picture.
        """

    @staticmethod
    def visual_tokens(config: PreTrainedConfig) -> dict[str, int]:
        """Returns, for each kind of visual input, the token that its features replace.

        The kinds are the keys of `mm_encoder_outputs`.
        """

    @staticmethod
    def stock_inputs(config: PreTrainedConfig, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns inputs, by name, that the stock class needs beside tokens and pictures.

        Args:
            input_ids: [B, S] long, the prompt.
        """

    @property
    def vision_tower(self) -> nn.Module:
        """The module that makes features of pictures, before the projector."""

    @property
    def visual_plan(self) -> VisualPlan:
        """The plan in force."""

    def set_visual_plan(self, plan: VisualPlan) -> None:
        """Puts `plan` in force and writes it to the config. Raises UserError if it does not fit the model."""

    def use_plan(self, plan: VisualPlan) -> AbstractContextManager[None]:
        """Puts `plan` in force inside the block, in this thread or task alone. The config keeps the model's own.

        A thread that is started inside the block has the model's own plan.

        Raises:
            UserError: the plan does not fit the model.
        """

    def encode_pictures(self, pictures: dict[str, torch.Tensor], *, for_every_plan: bool = False) -> dict[str, object]:
        """Returns inputs of the forward that stand for pictures, so that tower and projector run once.

        Args:
            pictures: what the image processor gives: pixels, and sizes if the family has them. It may be empty.
            for_every_plan: whether the inputs are for any plan, or for the one in force.

        Returns:
            `mm_encoder_outputs`, for each kind of visual input the features and all that these plans ask of the tower,
            and what else of `pictures` the forward needs.
        """
