"""A decoder over two streams. Text rows and visual rows are two tensors, and a visual plan says what is computed.

What the plan does not ask for is never computed. Under the dense plan the decoder is the dense model.
The class here is mixed into a transformers decoder whose layers are those of sparse_layer.py. Names and shapes of
parameters stay the dense model's.

Shapes: B batch, S rows of a padded batch, T text rows, V visual rows, D hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from .attention_kinds import SparsePreTrainedMixin, refuse_attention
from .hidden_states import HiddenStates
from .layer_plan import LayerPlan
from .packed_samples import PackedSamples, refuse_bounds
from .plan_in_force import PlanInForce, plan_in_use, using
from .rotary_embedding import rotary_embedding
from .sparse_layer import FusedRMSNorm, Rope, ScaledRows, SharedInputs
from .stream_split import split_streams
from .user_error import UserError
from .visual_cache import CachedSlots, FirstCacheLayer, KeySlots, VisualCache, fillable, first_layer
from .visual_gates import LayerGates
from .visual_layout import Images, TextTokens, VisualTokens, gather_rows
from .visual_masks import StageMasks, TextMasks
from .visual_plan import LiveLayer, VisualPlan
from .visual_stream import VisualStream

CosineAndSine: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Of the rotary embedding, each [B, S, head_dim]."""


class SparseDecoderMixin(SparsePreTrainedMixin, nn.Module):
    """Forward of a decoder over two streams under a plan. It is mixed in before the transformers model class."""

    if TYPE_CHECKING:  # attributes of the stock decoder; transformers reads annotations of `config` at run time
        config: PreTrainedConfig
        layers: nn.ModuleList
        rotary_emb: nn.Module
        post_init: Callable[[], None]

    def build(self, layer_class: type[nn.Module], rotary_emb: nn.Module) -> None:
        """Builds what the stock decoder's constructor builds, from sparse layers and under the dense plan."""
        config = self.config
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList([layer_class(config, index) for index in range(config.num_hidden_layers)])
        self.norm = FusedRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = rotary_emb
        self.gradient_checkpointing = False
        self.set_visual_plan(VisualPlan.dense(config.num_hidden_layers))
        self.post_init()

    @property
    def in_force(self) -> PlanInForce:
        """The plan in force, in this thread or task, and what follows from it."""
        return plan_in_use(self) or self._own_plan

    @property
    def visual_plan(self) -> VisualPlan:
        """The plan in force."""
        return self.in_force.plan

    def set_visual_plan(self, plan: VisualPlan) -> None:
        """Makes `plan` the decoder's own. Raises UserError if it does not fit the model."""
        with torch.device("cpu"):  # indices are real also where the model is built without memory, to be loaded
            self._own_plan = self._following(plan)

    @contextmanager
    def use_plan(self, plan: VisualPlan) -> Iterator[None]:
        """Puts `plan` in force inside the block, in this thread or task alone. Raises UserError if it does not fit."""
        with using(self, self._following(plan)):
            yield

    def _following(self, plan: VisualPlan) -> PlanInForce:
        """Returns what follows from a plan. Raises UserError if it does not fit the model."""
        attentions: list[Any] = [layer.self_attn for layer in self.layers]
        return PlanInForce.of(plan, self.config, [attention.head_dim for attention in attentions])

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        output_attentions: bool | None = None,
        visual_mask: torch.Tensor | None = None,
        images: Images = (),
        class_attention: torch.Tensor | None = None,
        supervised: torch.Tensor | None = None,
        gates: list[LayerGates] | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Runs the decoder over a padded batch.

        The three masks may lie on the host, where they are read. A mask that lies on the device is waited for.

        Args:
            input_ids: [B, S], text alone.
            attention_mask: [B, cached + S], 0 at padding, which may be on either side.
            position_ids: as the stock decoder takes them. Without a mask and a cache, samples begin where they begin
                again (packed_samples.py).
            inputs_embeds: [B, S, D] in place of input_ids, with the features of pictures where they belong.
            visual_mask: [B, S] bool, true at image tokens.
            images: the grids of each image of the batch, in order.
            class_attention: [image tokens of the batch, blocks], the attention of the vision tower's class token in its
                last blocks, for plans that rank by it.
            supervised: [B, S] bool in training, true at answer tokens. Tokens are then ranked from the rows before
                answers.
            gates: each layer's gates. The plan must let every token, unit and neuron serve. It may set `radius`.

        Returns:
            last_hidden_state [B, S, D] with text rows. It is zero at image tokens, for nothing reads them, and at
            padding before text. Padding after a sample that ends with text repeats its last row, so that generation
            from such prompts goes on from there. hidden_states, if asked for, with both streams. They are zero at
            withdrawn tokens and at padding.

        Raises:
            UserError: attention maps are asked for, the cache is not one that this model made, masks do not fit, or
                gates come with a plan that shuts something.
        """
        in_force = self.in_force
        self._check_arguments(input_ids, inputs_embeds, output_attentions)
        if gates is not None:
            _check_gates(gates, in_force.plan)
        refuse_bounds(kwargs, position_ids)
        embeds: torch.Tensor = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        batch, length, _ = embeds.shape
        if position_ids is not None and attention_mask is None and past_key_values is None:
            packing = PackedSamples.of(position_ids, batch)
            if packing is not None:
                if use_cache:
                    raise UserError("position_ids: got those of packed samples, which have no cache: use_cache=False")
                return self._packed_forward(
                    packing,
                    embeds,
                    position_ids,
                    visual_mask,
                    supervised,
                    output_hidden_states=output_hidden_states,
                    images=images,
                    class_attention=class_attention,
                    gates=gates,
                )
        cache = self._cache(past_key_values, use_cache)
        first = first_layer(cache)
        past_length = 0 if first is None else first.num_seen
        text_tokens, visual_tokens = split_streams(
            (batch, length), attention_mask, visual_mask, images, past_length, embeds.device, supervised
        )
        rope = self._batch_rope(embeds, position_ids, past_length)
        slots = _cached_slots(first, batch, embeds.device)
        shared = self._shared_by_all(text_tokens, rope, slots, cache)
        text = gather_rows(embeds, text_tokens.index)
        visual = None
        if visual_tokens is not None:
            if past_length > 0:
                _refuse_unseen_pictures(in_force.live)
            visual = _visual_stream(embeds, visual_tokens, class_attention)

        states, scores = HiddenStates(self._asked_states(output_hidden_states), len(self.layers), length), None
        for number, stage in enumerate(in_force.stages):
            visual = None if visual is None else visual.entering(in_force.live[stage[0]], scores)
            shared = _shared_by_stage(shared, rope, visual, slots, number)
            for index in stage:
                text, visual = states.through(text, text_tokens, visual)
                text, visual, scores = self._run_layer(index, text, visual, in_force, shared, gates)

        last = text_tokens.spread(self.norm(text))
        if first is not None:
            slots.text = shared.text_masks.keys
            first.slots = slots
            first.grow(text_tokens, length)
        return BaseModelOutputWithPast(
            last_hidden_state=last, past_key_values=cache, hidden_states=states.with_last(last)
        )

    def _packed_forward(
        self,
        packing: PackedSamples,
        embeds: torch.Tensor,
        position_ids: torch.Tensor,
        visual_mask: torch.Tensor | None,
        supervised: torch.Tensor | None,
        **arguments: Any,
    ) -> BaseModelOutputWithPast:
        """Runs the forward with one sample a row. Pictures are in the order of samples already."""
        outputs = self.forward(
            inputs_embeds=packing.unpacked(embeds),
            attention_mask=packing.present,
            position_ids=packing.unpacked_positions(position_ids),
            visual_mask=None if visual_mask is None else packing.unpacked(visual_mask),
            supervised=None if supervised is None else packing.unpacked(supervised),
            use_cache=False,
            **arguments,
        )
        states = outputs.hidden_states
        if states is not None:
            outputs.hidden_states = tuple(None if state is None else packing.packed(state) for state in states)
        outputs.last_hidden_state = packing.packed(outputs.last_hidden_state)
        return outputs

    def rope(self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor | None, past_length: int) -> CosineAndSine:
        """Returns cosine and sine [B or 1, S, head_dim] for inputs_embeds [B, S, D].

        Without position ids, rows are counted from `past_length` on.
        """
        if position_ids is None:
            length = inputs_embeds.shape[1]
            position_ids = torch.arange(past_length, past_length + length, device=inputs_embeds.device).unsqueeze(0)
        return rotary_embedding(self.rotary_emb, inputs_embeds, position_ids)

    def _check_arguments(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        output_attentions: bool | None,
    ) -> None:
        """Raises UserError for arguments that the forward cannot serve."""
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("give exactly one of input_ids and inputs_embeds")
        refuse_attention(self.config._attn_implementation)
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            raise UserError("output_attentions: a sparse model does not compute attention maps; use the dense model")

    def _cache(self, given: Cache | None, use_cache: bool | None) -> Cache | None:
        """Returns the cache to fill, or None. Raises UserError for a cache of another kind."""
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if self.gradient_checkpointing and self.training:
            return None
        if given is not None:
            return fillable(given, len(self.layers))
        return VisualCache(len(self.layers)) if use_cache else None

    def _asked_states(self, asked: bool | int | Sequence[int] | None) -> bool | int | Sequence[int] | None:
        return self.config.output_hidden_states if asked is None else asked

    def _batch_rope(
        self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor | None, past_length: int
    ) -> CosineAndSine:
        """Returns cosine and sine [B, S, head_dim] of all rows."""
        cosine, sine = self.rope(inputs_embeds, position_ids, past_length)
        batch = inputs_embeds.shape[0]
        return cosine.expand(batch, -1, -1), sine.expand(batch, -1, -1)

    def _shared_by_all(
        self,
        text_tokens: TextTokens,
        rope: CosineAndSine,
        slots: CachedSlots,
        cache: Cache | None,
    ) -> SharedInputs:
        """Returns what all layers share. What a stage shares is not there yet."""
        return SharedInputs(
            text=text_tokens,
            text_rope=_rope_of_rows(rope, text_tokens.index),
            text_masks=TextMasks(text_tokens, slots.text),
            visual=None,
            visual_rope=None,
            stage=None,
            cache=cache,
            scaled_rows=ScaledRows(),
        )

    def _run_layer(
        self,
        index: int,
        text: torch.Tensor,
        visual: VisualStream | None,
        in_force: PlanInForce,
        shared: SharedInputs,
        gates: list[LayerGates] | None,
    ) -> tuple[torch.Tensor, VisualStream | None, torch.Tensor | None]:
        """Returns text and visual rows after a layer, and the attention [B, V] that the next layer ranks tokens by."""
        text, states, scores = self.layers[index](
            text,
            None if visual is None else visual.states,
            live=in_force.live[index],
            units=in_force.units[index],
            neurons=in_force.neurons[index],
            shared=shared,
            rank=None if visual is None else in_force.ranks_after[index],
            gates=None if gates is None else gates[index],
        )
        return text, None if visual is None else replace(visual, states=states), scores


def _check_gates(gates: list[LayerGates], plan: VisualPlan) -> None:
    """Raises UserError if the gates do not fit the plan in force."""
    if len(gates) != len(plan):
        raise UserError(f"gates: got those of {len(gates)} layers, the model has {len(plan)}")
    for index, layer in enumerate(plan.layers):
        if replace(layer, radius=None, bidirectional=False) != LayerPlan():
            raise UserError(
                f"gates: layer {index} of the plan in force is not dense; gates shut what the plan leaves open"
            )


def _refuse_unseen_pictures(live: Sequence[LiveLayer]) -> None:
    """Raises UserError if a layer's visual rows need those of earlier pictures, which the cache does not hold.

    It does not hold them where no text reads them.
    """
    for index, layer in enumerate(live):
        if layer.attend and not layer.read and layer.radius is None:
            raise UserError(
                f"visual plan: layer {index} is blind, so the cache does not hold the earlier pictures that a new "
                "picture attends to there; give the whole conversation without past_key_values"
            )


def _visual_stream(
    inputs_embeds: torch.Tensor, tokens: VisualTokens, class_attention: torch.Tensor | None
) -> VisualStream:
    """Returns the visual rows of this forward."""
    return VisualStream(
        states=gather_rows(inputs_embeds, tokens.index),
        tokens=tokens,
        class_attention=None if class_attention is None else tokens.padded(class_attention),
    )


def _cached_slots(first: FirstCacheLayer | None, batch: int, device: torch.device) -> CachedSlots:
    """Returns the slots of the cached rows, which are none without a cache. They are to be updated by the forward."""
    if first is None or first.slots is None:
        return CachedSlots(KeySlots.empty(batch, device))
    return first.slots


def _shared_by_stage(
    shared: SharedInputs, rope: CosineAndSine, visual: VisualStream | None, slots: CachedSlots, number: int
) -> SharedInputs:
    """Returns what the layers of a stage share. Adds the stage's keys to the slots, if it has pictures."""
    tokens = None if visual is None else visual.tokens
    if tokens is None and number not in slots.joint:
        return replace(shared, visual=None, visual_rope=None, stage=None)
    # Before the conversation's first picture a stage has text rows alone.
    past = slots.joint.get(number, slots.text)
    masks = StageMasks(shared.text, tokens, past, shared.text_masks.keys)
    slots.joint[number] = masks.keys
    visual_rope = None if tokens is None else _rope_of_rows(rope, tokens.index)
    return replace(shared, visual=tokens, visual_rope=visual_rope, stage=masks)


def _rope_of_rows(rope: CosineAndSine, index: torch.Tensor | None) -> Rope:
    """Returns the rotary embedding of the rows at index [B, rows]."""
    cosine, sine = (gather_rows(part, index).unsqueeze(1) for part in rope)
    half = sine.shape[-1] // 2
    return cosine, sine[..., :half], sine[..., half:]
