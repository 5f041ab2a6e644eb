"""What every family's sparse model has on top of its stock class: a plan in force, and logits of chosen rows alone.

`SparseMultimodalMixin` stands before the stock `...ForConditionalGeneration` class, whose `model.language_model` is a decoder of
sparse_decoder.py.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from .user_error import UserError
from .visual_layout import num_tokens
from .visual_plan import VisualPlan


class SparsePreTrainedMixin:
    """Before the stock `...PreTrainedModel`: what two streams of rows cannot do."""

    _supports_flash_attn = False  # masks tell which visual tokens a text row sees
    _supports_flex_attn = False
    _supports_attention_backend = False
    _can_compile_fullgraph = False


class SparseMultimodalMixin:
    """A multimodal model whose visual tokens are served as its plan says.

    Logits at image tokens are those of a zero state: nothing reads them, so their last states are never computed.
    """

    @property
    def vision_tower(self) -> nn.Module:
        """What makes features of pictures, before the projector."""
        return self.model.vision_tower

    @property
    def visual_plan(self) -> VisualPlan:
        """The plan in force."""
        return self.model.language_model.visual_plan

    def set_visual_plan(self, plan: VisualPlan) -> None:
        """Puts `plan` in force and writes it to the config. Raises UserError when it does not fit the model."""
        self._check_tower(plan)
        self.model.language_model.set_visual_plan(plan)
        self.config.visual_plan = plan.to_dict()

    @contextmanager
    def use_plan(self, plan: VisualPlan) -> Iterator[None]:
        """`plan` in force inside the block; the config keeps the model's own. Raises UserError when it does not fit the model."""
        self._check_tower(plan)
        with self.model.language_model.use_plan(plan):
            yield

    def _check_tower(self, plan: VisualPlan) -> None:
        """Raises UserError where the plan ranks by a class token that the vision tower does not have."""
        num_blocks = len(self.model.class_blocks())
        if plan.tower_layers > num_blocks:
            raise UserError(
                f"visual plan: rank by cls_attention over {plan.tower_layers} layers: the vision tower "
                f"({self.vision_tower.config.model_type}) has {num_blocks} with a class token, up to the one that is read"
            )

    @staticmethod
    def stock_inputs(config: PreTrainedConfig, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the stock class must be told of a prompt besides its tokens and pictures."""
        return {}

    @staticmethod
    def visual_tokens(config: PreTrainedConfig) -> dict[str, int]:
        """Per kind of visual input, as in `mm_encoder_outputs`, the token that its features replace."""
        return {"image": config.image_token_id}

    @staticmethod
    def visual_rows(image: Sequence[tuple[int, int]]) -> torch.Tensor:
        """[rows] bool: of the rows that a picture with these grids takes in a prompt, which are visual tokens: all of them."""
        return torch.ones(num_tokens(image), dtype=torch.bool)

    def encode_pictures(self, pictures: dict[str, torch.Tensor]) -> dict:
        """What forward takes in place of what the image processor gives: features, once through tower and projector, with all
        that any plan asks of the tower."""
        if not pictures:
            return {}
        features = self.model.get_image_features(**pictures, tower_layers=len(self.model.class_blocks()))
        return {"mm_encoder_outputs": {"image": features}}

    def build(self, model: nn.Module) -> None:
        """What the stock class's constructor builds, around a sparse model; under the config's plan."""
        config = self.config
        self.model = model
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        if config.visual_plan is not None:
            plan = VisualPlan.from_dict(config.visual_plan)
            self._check_tower(plan)
            self.model.language_model.set_visual_plan(plan)
        self.post_init()

    def serve(
        self,
        stock_forward: Callable,
        *,
        labels: torch.Tensor | None,
        logits_to_keep: int | torch.Tensor,
        logits_mask: torch.Tensor | None,
        mm_encoder_outputs: dict | None,
        **inputs,
    ):
        """The family's forward, whose signature generation reads.

        Args:
            labels: [B, S], -100 where unsupervised; they also tell which rows rank visual tokens in training.
            logits_mask: [B, S] bool; logits are then [rows, vocab], of the true rows alone, in row-major order.
        """
        if mm_encoder_outputs:
            inputs["mm_encoder_outputs"] = mm_encoder_outputs
        if labels is not None:
            inputs["supervised"] = labels != -100
        if logits_mask is None:
            return stock_forward(labels=labels, logits_to_keep=logits_to_keep, **inputs)
        outputs = self.model(**inputs)
        return CausalLMOutputWithPast(
            logits=self.lm_head(outputs.last_hidden_state[logits_mask]),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )


def placeholders(
    token_ids: Sequence[int],
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    embedding: nn.Embedding,
) -> torch.Tensor:
    """[B, S] bool: rows of these tokens, which visual features replace; without ids, rows that equal their embeddings."""
    if input_ids is not None:
        return torch.isin(input_ids, input_ids.new_tensor(token_ids))
    embedded = embedding(torch.tensor(token_ids, device=inputs_embeds.device))
    return (inputs_embeds.unsqueeze(2) == embedded).all(-1).any(-1)


def visual_runs(kinds: torch.Tensor) -> Iterator[tuple[int, int, int]]:
    """Of kinds [B, S], 0 at text: (sample, begin, end) of each run of equal visual tokens, one picture each, in their order."""
    for sample, of_sample in enumerate(kinds.int().tolist()):
        for kind, run in groupby(range(len(of_sample)), key=of_sample.__getitem__):
            if kind:
                rows = list(run)
                yield sample, rows[0], rows[-1] + 1


def refuse_missing_pictures(input_ids: torch.Tensor | None, token_ids: Sequence[int]) -> None:
    """Raises UserError where a prompt of several rows holds image tokens but came without pictures."""
    if (
        input_ids is not None
        and input_ids.shape[1] > 1
        and bool(torch.isin(input_ids, input_ids.new_tensor(token_ids)).any())
    ):
        raise UserError("input_ids hold image tokens, but no pictures were given")
