"""A model under a visual plan: tower, projector and a decoder of sparse_decoder.py, with or without a head."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from transformers import PreTrainedConfig

from .class_attention import TowerBlock
from .sparse_decoder import SparseDecoderMixin
from .user_error import UserError
from .visual_plan import VisualPlan


class PlannedModelMixin:
    """A model without a head, under the plan of its config. It is mixed in before the stock `...Model`."""

    if TYPE_CHECKING:  # attributes of the family's model; transformers reads annotations of `config` at run time
        config: PreTrainedConfig
        language_model: SparseDecoderMixin
        class_blocks: Callable[..., list[TowerBlock]]

    @property
    def visual_plan(self) -> VisualPlan:
        """The plan in force."""
        return self.language_model.visual_plan

    def put_config_plan_in_force(self) -> None:
        """Puts the config's plan in force, at the end of a constructor. Raises UserError if it does not fit."""
        if self.config.visual_plan is not None:
            plan = VisualPlan.from_dict(self.config.visual_plan)
            self._check_tower(plan)
            self.language_model.set_visual_plan(plan)

    def set_visual_plan(self, plan: VisualPlan) -> None:
        """Puts `plan` in force and writes it to the config. Raises UserError if it does not fit the model."""
        self._check_tower(plan)
        self.language_model.set_visual_plan(plan)
        self.config.visual_plan = plan.to_dict()

    @contextmanager
    def use_plan(self, plan: VisualPlan) -> Iterator[None]:
        """Puts `plan` in force inside the block, in this thread or task alone. The config keeps the model's own.

        A thread that is started inside the block has the model's own plan.

        Raises:
            UserError: the plan does not fit the model.
        """
        self._check_tower(plan)
        with self.language_model.use_plan(plan):
            yield

    def _check_tower(self, plan: VisualPlan) -> None:
        """Raises UserError if the plan ranks by a class token that the vision tower does not have."""
        num_blocks = len(self.class_blocks())
        if plan.tower_layers > num_blocks:
            raise UserError(
                f"visual plan: rank by cls_attention over {plan.tower_layers} layers: the vision tower "
                f"({self.config.vision_config.model_type}) has {num_blocks} with a class token, up to the one that is "
                "read"
            )
