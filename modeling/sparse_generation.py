"""What generation with a sparse model refuses. What it does otherwise is what transformers does with any model."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedConfig, SuppressTokensLogitsProcessor

from .family import FamilyModel
from .user_error import UserError
from .visual_cache import fillable, first_layer
from .visual_layout import Grid

REFUSED_SETTINGS: dict[str, tuple[tuple, str]] = {
    "prefill_chunk_size": ((None,), "the visual tokens of a prompt are ranked and see one another as a whole"),
    "cache_implementation": ((None, "dynamic"), "layers hold different numbers of rows"),
}
"""Settings of generation that are refused, with the values that are allowed and the reason."""


class SparseGenerationMixin:
    """Generation of a multimodal model. It is mixed in before the stock `...ForConditionalGeneration` class."""

    if (
        TYPE_CHECKING
    ):  # what the family and the stock model have; transformers reads annotations of `config` at run time
        config: PreTrainedConfig
        model: FamilyModel
        generation_config: GenerationConfig
        get_input_embeddings: Callable[[], nn.Embedding]
        visual_tokens: Callable[[PreTrainedConfig], dict[str, int]]
        visual_rows: Callable[[Sequence[Grid]], torch.Tensor]

    @property
    def picture_ends_visual(self) -> bool:
        """Whether the last row of a picture in a prompt is a visual token, and not a newline."""
        return bool(self.visual_rows(((1, 1), (1, 1)))[-1])

    def image_tokens(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """Returns which tokens features replace, [B, S] bool, without waiting for the device.

        Args:
            input_ids: [B, S] long, or None. Then rows of `inputs_embeds` [B, S, D] count that equal the tokens'
                embeddings.
        """
        tokens = list(self.visual_tokens(self.config).values())
        if input_ids is not None:
            masks = [input_ids == token for token in tokens]
        else:
            assert inputs_embeds is not None, "the forward takes input_ids or inputs_embeds"
            weight = self.get_input_embeddings().weight
            masks = [(inputs_embeds == weight[token]).all(-1) for token in tokens]
        return torch.stack(masks).any(0)

    def generate(self, inputs: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Generates as the stock class does. See there.

        Raises:
            UserError: the prompt is to be run in chunks, or ends with a picture, or the cache is of another kind.
        """
        given = args[0] if args else kwargs.get("generation_config")
        for name, (allowed, reason) in REFUSED_SETTINGS.items():
            values = (kwargs.get(name), getattr(given, name, None), getattr(self.generation_config, name, None))
            value = next((value for value in values if value is not None), None)
            if value not in allowed:
                raise UserError(f"{name}: got {value!r}, allowed: {', '.join(map(repr, allowed))} ({reason})")
        if kwargs.get("past_key_values") is not None:
            fillable(kwargs["past_key_values"], len(self.model.language_model.layers))
        prompt = kwargs.get("input_ids", inputs), kwargs.get("inputs_embeds")
        if self.picture_ends_visual and prompt != (None, None):
            self._refuse_picture_at_end(self.image_tokens(*prompt), kwargs.get("attention_mask"))
        return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]

    def _prefill(
        self,
        input_ids: torch.Tensor,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        is_first_iteration: bool = True,
    ) -> Any:
        """Runs the prompt as the stock class does, but with its pictures in an assistant's first forward too.

        Stock assistants never see them.
        """
        first = first_layer(model_kwargs.get("past_key_values"))
        starts = first is None or first.num_seen == 0
        return super()._prefill(  # type: ignore[misc]
            input_ids, generation_config, model_kwargs, is_first_iteration=is_first_iteration or starts
        )

    def _prepare_position_ids_for_generation(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Returns the stock class's positions [B, S] of a prompt. Padding after it has the last one, not 0.

        So generation goes on from there.
        """
        return super()._prepare_position_ids_for_generation(*args, **kwargs).cummax(-1).values  # type: ignore[misc]

    @staticmethod
    def _refuse_picture_at_end(is_image: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
        """Raises UserError if a prompt ends with a visual token, whose last state is never computed.

        Args:
            is_image: [B, S] bool.
            attention_mask: [B, cached + S], 0 at padding, or None.
        """
        length = is_image.shape[1]
        if length == 0:
            return
        present = torch.ones_like(is_image) if attention_mask is None else attention_mask[:, -length:].bool()
        last = torch.where(present, torch.arange(length, device=is_image.device), 0).amax(1, keepdim=True)
        if bool(is_image.gather(1, last).any()):
            raise UserError("generate: a prompt ends with a picture, allowed: prompts that end with text")

    def _get_candidate_generator(self, *, logits_processor: LogitsProcessorList, **kwargs: Any) -> Any:
        """Returns what gives candidates in assisted generation. They are no image tokens.

        Candidates follow the prompt in its forward.

        Raises:
            UserError: they would rank visual tokens.
        """
        for index, layer in enumerate(self.model.language_model.in_force.live):
            if layer.keep and layer.rank.by == "text_attention":
                raise UserError(
                    f"assisted generation: layer {index} of the visual plan ranks visual tokens by the attention of "
                    "text, in which an assistant's candidates would take part; generate without an assistant"
                )
        tokens = list(self.visual_tokens(self.config).values())
        no_pictures = SuppressTokensLogitsProcessor(tokens, device=self.get_input_embeddings().weight.device)
        return super()._get_candidate_generator(  # type: ignore[misc]
            logits_processor=LogitsProcessorList([*logits_processor, no_pictures]), **kwargs
        )
