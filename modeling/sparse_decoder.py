"""A decoder over two streams: text rows and visual rows are two tensors, and a visual plan says what is computed.

What the plan does not ask for is never computed; with the dense plan the decoder is the dense model. The class here is
mixed into a transformers decoder whose layers are those of `sparse_layer`; parameter names and shapes stay the dense model's.

Shapes: B batch, S rows of a padded batch, T text rows, V visual rows, D hidden size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from .layer_plan import LayerPlan
from .sparse_layer import ReusingRMSNorm, Streams, UnitRows
from .user_error import UserError
from .visual_cache import KeySlots, VisualCache
from .visual_gates import LayerGates
from .visual_layout import Images, gather_rows, join_streams, split_streams
from .visual_masks import StageMasks, TextMasks
from .visual_plan import VisualPlan
from .visual_ranking import given_scores
from .visual_units import Units


class SparseDecoderMixin:
    """Forward of a decoder over two streams under a plan; mixed in before the transformers model class."""

    def build(self, layer_class: type[nn.Module], rotary_emb: nn.Module) -> None:
        """What the stock decoder's constructor builds, of sparse layers; under the dense plan."""
        config = self.config
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList([layer_class(config, index) for index in range(config.num_hidden_layers)])
        self.norm = ReusingRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = rotary_emb
        self.gradient_checkpointing = False
        self.set_visual_plan(VisualPlan.dense(config.num_hidden_layers))
        self.post_init()

    def set_visual_plan(self, plan: VisualPlan) -> None:
        """Puts `plan` in force. Raises UserError when it does not fit the model."""
        config = self.config
        plan.check(config.num_hidden_layers, config.num_key_value_heads, config.intermediate_size)
        self.visual_plan = plan
        self.live = plan.live(config.num_key_value_heads, config.intermediate_size)
        group = config.num_attention_heads // config.num_key_value_heads
        self.units = [
            Units(live.heads, config.num_key_value_heads, group, layer.self_attn.head_dim)
            for layer, live in zip(self.layers, self.live, strict=True)
        ]
        self.neurons = [live.ffn if isinstance(live.ffn, int) else torch.tensor(live.ffn) for live in self.live]

    @contextmanager
    def use_plan(self, plan: VisualPlan) -> Iterator[None]:
        """`plan` in force inside the block, the plan before it again afterwards."""
        before = self.visual_plan
        self.set_visual_plan(plan)
        try:
            yield
        finally:
            self.set_visual_plan(before)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        visual_mask: torch.Tensor | None = None,
        images: Images = (),
        class_attention: torch.Tensor | None = None,
        supervised: torch.Tensor | None = None,
        gates: list[LayerGates] | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """The decoder over a padded batch.

        Args:
            inputs_embeds: [B, S, D], picture features in place; or input_ids [B, S] of text alone.
            attention_mask: [B, cached + S], 0 marks padding on either side.
            position_ids: as the stock decoder takes them.
            visual_mask: [B, S] bool, true at image tokens. images: the grids of each image of the batch, in order.
            class_attention: [image tokens of the batch, blocks], what the vision tower's class token attends to in its last
                blocks; for plans that rank by it.
            supervised: [B, S] bool, true at answer tokens, in training: tokens are ranked from the rows before answers.
            gates: each layer's, on a plan that serves every token, unit and neuron (`radius` may be set).

        Returns:
            last_hidden_state [B, S, D]: text rows; zeros at image tokens (nothing reads them) and at padding.
            hidden_states, when asked for: both streams; zeros at withdrawn tokens and at padding.

        Raises:
            UserError: attention maps asked for, a cache that this model did not make, masks that do not fit, or gates on a
                plan that has shut something already.
        """
        if gates is not None:
            self._check_gates(gates)
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("give exactly one of input_ids and inputs_embeds")
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            raise UserError("output_attentions: a sparse model does not compute attention maps; use the dense model")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        batch, length, _ = inputs_embeds.shape
        cache = self._cache(past_key_values, use_cache)
        past_length = 0 if cache is None else cache.seen
        device = inputs_embeds.device

        text_tokens, visual_tokens = split_streams(
            (batch, length), attention_mask, visual_mask, images, past_length, device
        )
        rope = tuple(part.expand(batch, -1, -1) for part in self.rope(inputs_embeds, position_ids, past_length))
        slots = None if cache is None else cache.start(batch, device)
        empty = KeySlots.empty(batch, device)
        text_masks = TextMasks(text_tokens, empty if slots is None else slots.text)
        text_rope = tuple(gather_rows(part, text_tokens.index) for part in rope)

        text = gather_rows(inputs_embeds, text_tokens.index)
        visual = None if visual_tokens is None else gather_rows(inputs_embeds, visual_tokens.index)
        if visual is not None and past_length > 0:
            self._refuse_unseen_pictures()
        if visual is not None and class_attention is not None:
            class_attention = visual_tokens.placed(class_attention)

        states: list[torch.Tensor] = []
        scores, streams, stage, carried = None, None, -1, None
        unit_rows = UnitRows()
        for index, (layer, live) in enumerate(zip(self.layers, self.live, strict=True)):
            if live.tokens == 0:
                visual, visual_tokens = None, None
            elif live.keep and visual is not None:
                if not live.rank.by_attention:
                    scores = given_scores(live.rank, visual_tokens, live.tokens, class_attention)
                visual_tokens, chosen = visual_tokens.survivors(scores, live.tokens)
                visual = gather_rows(visual, chosen)
                class_attention = None if class_attention is None else gather_rows(class_attention, chosen)
            if output_hidden_states:
                states.append(join_streams(text, text_tokens, visual, visual_tokens, length))
            if live.tokens != carried:
                stage, carried = stage + 1, live.tokens
                past = empty if slots is None else slots.joint.get(stage, slots.text)
                has_pictures = visual is not None or (slots is not None and stage in slots.joint)
                streams = Streams(
                    text=text_tokens,
                    text_rope=text_rope,
                    text_masks=text_masks,
                    visual=visual_tokens,
                    visual_rope=None
                    if visual is None
                    else tuple(gather_rows(part, visual_tokens.index) for part in rope),
                    stage=StageMasks(text_tokens, visual_tokens, past, text_masks.keys) if has_pictures else None,
                    cache=cache,
                    unit_rows=unit_rows,
                    supervised=supervised,
                )
                if slots is not None and has_pictures:
                    slots.joint[stage] = streams.stage.keys
            below = self.live[index + 1] if index + 1 < len(self.live) else None
            ranked = visual is not None and below is not None and below.keep and below.rank.by_attention
            text, visual, scores = layer(
                text,
                visual,
                live=live,
                units=self.units[index],
                neurons=self.neurons[index],
                streams=streams,
                rank=below.rank if ranked else None,
                gates=None if gates is None else gates[index],
            )

        last = join_streams(self.norm(text), text_tokens, None, None, length)
        if output_hidden_states:
            states.append(last)
        if cache is not None:
            cache.seen += length
            slots.text = text_masks.keys
        return BaseModelOutputWithPast(
            last_hidden_state=last, past_key_values=cache, hidden_states=tuple(states) if output_hidden_states else None
        )

    def rope(
        self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor | None, past_length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine [B or 1, S, head_dim] for inputs_embeds [B, S, D]; without position_ids rows are counted."""
        if position_ids is None:
            length = inputs_embeds.shape[1]
            position_ids = torch.arange(past_length, past_length + length, device=inputs_embeds.device).unsqueeze(0)
        return self.rotary_emb(inputs_embeds, position_ids)

    def _check_gates(self, gates: list[LayerGates]) -> None:
        if len(gates) != len(self.layers):
            raise UserError(f"gates: got those of {len(gates)} layers, the model has {len(self.layers)}")
        for index, layer in enumerate(self.visual_plan.layers):
            if replace(layer, radius=None, bidirectional=False) != LayerPlan():
                raise UserError(
                    f"gates: layer {index} of the plan in force is not dense; gates shut what the plan leaves open"
                )

    def _cache(self, given: Cache | None, use_cache: bool) -> VisualCache | None:
        if self.gradient_checkpointing and self.training:
            return None
        if isinstance(given, VisualCache):
            return given
        if given is not None and (
            not isinstance(given, DynamicCache) or given.offloading or given.get_seq_length() > 0
        ):
            raise UserError(
                f"past_key_values: got a {type(given).__name__}, allowed: None, an empty DynamicCache without offloading, "
                "or the VisualCache that this model returned"
            )
        return VisualCache(len(self.layers)) if use_cache or given is not None else None

    def _refuse_unseen_pictures(self) -> None:
        """New pictures on a cache whose earlier pictures their rows would need, but no text reads, so none are kept."""
        for index, live in enumerate(self.live):
            if live.attend and not live.read and live.radius is None:
                raise UserError(
                    f"visual plan: layer {index} is blind, so the cache does not hold the earlier pictures that a new "
                    "picture attends to there; give the whole conversation without past_key_values"
                )
