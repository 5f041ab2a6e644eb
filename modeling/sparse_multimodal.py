"""What the sparse models of all families have alike. They have a plan in force, and can give logits of chosen rows.

`SparseMultimodalMixin` is mixed in before the stock `...ForConditionalGeneration` class. The decoder in it,
`model.language_model`, is one of sparse_decoder.py.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from .family import FamilyModel
from .host_memory import to_device, to_host
from .narrow_linear import refuse_adapters_by_place
from .sparse_generation import SparseGenerationMixin
from .user_error import UserError
from .visual_layout import Grid, num_tokens
from .visual_plan import VisualPlan


class SparseMultimodalMixin(SparseGenerationMixin, nn.Module):
    """A multimodal model that treats its visual tokens as its plan says. See `Family` for the members.

    Logits at image tokens are those of a zero state. Nothing reads them, so their last states are never computed.
    """

    model_class: ClassVar[type]

    if TYPE_CHECKING:  # attributes of the stock model; transformers reads annotations of `config` at run time
        config: PreTrainedConfig
        model: FamilyModel
        post_init: Callable[[], None]

    @property
    def vision_tower(self) -> nn.Module:
        return self.get_submodule("model.vision_tower")

    @property
    def visual_plan(self) -> VisualPlan:
        """The plan in force."""
        return self.model.visual_plan

    def set_visual_plan(self, plan: VisualPlan) -> None:
        """Puts `plan` in force and writes it to the config. Raises UserError if it does not fit the model."""
        self.model.set_visual_plan(plan)

    def use_plan(self, plan: VisualPlan) -> AbstractContextManager[None]:
        """Puts `plan` in force inside the block, in this thread or task alone. The config keeps the model's own.

        A thread that is started inside the block has the model's own plan.

        Raises:
            UserError: the plan does not fit the model.
        """
        return self.model.use_plan(plan)

    @staticmethod
    def stock_inputs(config: PreTrainedConfig, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns nothing: most stock classes need no more than tokens and pictures."""
        return {}

    @staticmethod
    def visual_tokens(config: PreTrainedConfig) -> dict[str, int]:
        """Returns the image token, for the one kind of visual input that most families have."""
        return {"image": config.image_token_id}

    @staticmethod
    def visual_rows(image: Sequence[Grid]) -> torch.Tensor:
        """Returns [rows] bool, all true: in most families, all rows of a picture are visual tokens."""
        return torch.ones(num_tokens(image), dtype=torch.bool)

    def encode_pictures(self, pictures: dict[str, torch.Tensor], *, for_every_plan: bool = False) -> dict[str, object]:
        """Returns the features of pictures, and the class token's attention where the plan ranks by it.

        For every plan it is that in all blocks. All states of the tower are then in memory at once.
        """
        if not pictures:
            return {}
        tower_layers = len(self.model.class_blocks()) if for_every_plan else None
        features = self.model.get_image_features(**pictures, tower_layers=tower_layers)
        return {"mm_encoder_outputs": {"image": features}}

    def build(self) -> None:
        """Builds what the stock class's constructor builds, around a sparse model."""
        config = self.config
        self.model = self.model_class(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def sparse_forward(
        self,
        stock_forward: Callable[..., Any],
        *,
        labels: torch.Tensor | None,
        logits_to_keep: int | torch.Tensor,
        logits_mask: torch.Tensor | None,
        mm_encoder_outputs: dict | None,
        **inputs: Any,
    ) -> Any:
        """Runs the forward of a family, whose own `forward` has the signature that generation reads.

        Args:
            stock_forward: the stock class's forward.
            labels: [B, S] long, -100 at rows without supervision. Image tokens count as such, and so do tokens right
                after a visual token, for nothing predicts them. In training, labels also tell which rows rank visual
                tokens.
            logits_to_keep: as the stock class takes it.
            logits_mask: [B, S] bool. If given, logits are those of the true rows alone, [rows, vocab], row by row.
                It may lie on the host, as may `labels` with it, and the tokens, masks and sizes among the inputs.
            mm_encoder_outputs: features of pictures, as `encode_pictures` gives them.
            inputs: other inputs of the stock class.

        Returns:
            The stock class's output. With a logits mask it is a CausalLMOutputWithPast without a loss.

        Raises:
            UserError: peft put adapters into the model that treat a row by its place in the prompt.
        """
        refuse_adapters_by_place(self)
        if mm_encoder_outputs:
            inputs["mm_encoder_outputs"] = mm_encoder_outputs
        if labels is not None:
            labels = self._predicted_labels(labels, inputs.get("input_ids"), inputs.get("inputs_embeds"))
            inputs["supervised"] = labels != -100
        if logits_mask is None:
            return stock_forward(labels=labels, logits_to_keep=logits_to_keep, **inputs)
        outputs = self.model(**inputs)
        return CausalLMOutputWithPast(
            logits=self.lm_head(chosen_rows(outputs.last_hidden_state, logits_mask)),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )

    def _predicted_labels(
        self, labels: torch.Tensor, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns labels [B, S] with -100 at image tokens, and where a visual token would have to predict them."""
        is_image = self.image_tokens(input_ids, inputs_embeds).to(labels.device)
        unpredicted = is_image.clone()
        if self.picture_ends_visual:
            unpredicted[:, 1:] |= is_image[:, :-1]
        return labels.masked_fill(unpredicted, -100)


def read_prompt(
    token_ids: Sequence[int],
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    embedding: nn.Embedding,
    has_pictures: bool,
    *others: torch.Tensor | None,
) -> list[torch.Tensor | None]:
    """Returns, in the host's memory, what the layout of a forward depends on. It waits for the device once.

    Args:
        token_ids: the tokens that visual features replace.
        input_ids: [B, S] long, or None. Without them, rows of `inputs_embeds` [B, S, D] count that equal the tokens'
            embeddings.
        has_pictures: whether the forward has visual features.
        others: masks and sizes that are wanted on the host as well.

    Returns:
        The kinds of tokens [B, S] long, 0 at text and n at the n-th of `token_ids`, then `others`. Without pictures the
        kinds are None, and while a cache grows by one row `others` are as they were given.

    Raises:
        UserError: a prompt of several rows holds image tokens, but there are no pictures.
    """
    if not has_pictures and (input_ids is None or input_ids.shape[1] == 1):
        return [None, *others]
    if input_ids is not None:
        ids, *others_read = to_host(input_ids, *others)
        assert ids is not None
        of_token = [(ids == token).long() for token in token_ids]
        kinds: torch.Tensor | None = _numbered(of_token)
    else:
        assert inputs_embeds is not None, "the forward takes input_ids or inputs_embeds"
        token_rows = embedding(to_device(torch.tensor(token_ids), inputs_embeds.device))
        of_token = [(inputs_embeds == row).all(-1).long() for row in token_rows]
        kinds, *others_read = to_host(_numbered(of_token), *others)
    if not has_pictures:
        if kinds is not None and bool(kinds.any()):
            raise UserError("input_ids hold image tokens, but no pictures were given")
        kinds = None
    return [kinds, *others_read]


def _numbered(masks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns n where the n-th mask is 1, and 0 where none is."""
    return torch.stack([number * mask for number, mask in enumerate(masks, 1)]).sum(0)


def embedded(
    input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, embedding: nn.Embedding
) -> torch.Tensor:
    """Returns the embeddings [B, S, D] of a prompt. Its tokens may lie on the host, and are then copied for it."""
    if inputs_embeds is not None:
        return inputs_embeds
    assert input_ids is not None, "the forward takes input_ids or inputs_embeds"
    device = embedding.weight.device
    # Weights that are offloaded have no device; what loads them moves their input too.
    return embedding(input_ids if device.type == "meta" else to_device(input_ids, device))


def with_features(embeddings: torch.Tensor, is_visual: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Returns embeddings [B, S, D] with visual features [rows, D] in place of those at is_visual [B, S], on the host.

    Neither this nor its gradient waits for the device, as those of a mask would.

    Raises:
        UserError: there are more or fewer features.
    """
    rows = is_visual.flatten().nonzero().squeeze(1)
    if len(rows) != len(features):
        raise UserError(f"image tokens: got {len(rows)} in the input, the images have {len(features)}")
    filled = embeddings.flatten(0, 1).index_copy(0, to_device(rows, embeddings.device), features.to(embeddings))
    return filled.view_as(embeddings)


def chosen_rows(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the rows [rows, D] of states [B, S, D] at mask [B, S] bool. A mask on the host is not waited for."""
    (on_host,) = to_host(mask)
    rows = on_host.flatten().nonzero().squeeze(1)
    return states.flatten(0, 1).index_select(0, to_device(rows, states.device))


def visual_runs(kinds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the samples, the begins and the ends, each [runs], of runs of equal visual tokens, sample by sample.

    A run is one picture or video.

    Args:
        kinds: [B, S], 0 at text, on the host.
    """
    around = F.pad(kinds, (1, 1))
    changes, visual = around[:, 1:] != around[:, :-1], around > 0
    sample, begin = (changes & visual[:, 1:]).nonzero(as_tuple=True)
    end = (changes & visual[:, :-1]).nonzero(as_tuple=True)[1]
    return sample, begin, end
