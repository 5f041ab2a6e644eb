"""One decoder layer over two streams.

Visual rows use the first rows and columns of the dense weights, frozen rows skip their sub-layer, unread layers hold no
visual keys. The mixin serves layers built like Llama's: `self_attn` with q, k, v, o projections, a gated `mlp`, two norms.

Shapes: B batch, T text rows, V visual rows, U units (key/value heads), H head_dim, D hidden size, L keys.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from .layer_plan import Rank
from .narrow_linear import NarrowLinear, Rows
from .neighbor_attention import neighbor_attention
from .visual_cache import VisualCache, VisualCacheLayer
from .visual_gates import LayerGates
from .visual_layout import TextTokens, VisualTokens
from .visual_masks import StageMasks, TextMasks
from .visual_plan import LiveLayer
from .visual_ranking import image_scores, text_scores
from .visual_units import Units


class ReusingRMSNorm(LlamaRMSNorm):
    """Llama's norm, told the rows at unit mean square where another layer has them already."""

    def forward(self, hidden_states: torch.Tensor, unit_rows: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(hidden_states) if unit_rows is None else self.weight * unit_rows


class UnitRows:
    """Visual rows at unit mean square, for all layers that see the same ones: frozen rows are scaled once, not in every
    layer. Without gradients only: a checkpointed layer that is run again must do again what it did."""

    def __init__(self):
        self._rows: torch.Tensor | None = None
        self._scaled: torch.Tensor | None = None

    def __call__(self, rows: torch.Tensor, epsilon: float) -> torch.Tensor | None:
        """rows [B, V, D] -> [B, V, D], as `LlamaRMSNorm` scales them; None where each layer has to do it."""
        if torch.is_grad_enabled():
            return None
        if rows is not self._rows:
            wide = rows.float()
            self._scaled = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(rows.dtype)
            self._rows = rows
        return self._scaled


def make_narrow(layer: nn.Module) -> None:
    """Replaces the projections of a freshly built decoder layer by narrow ones of the same shapes, and its first norm."""
    for parent in (layer.self_attn, layer.mlp):
        for name, dense in list(parent.named_children()):
            if isinstance(dense, nn.Linear):
                setattr(parent, name, NarrowLinear(dense.in_features, dense.out_features, bias=dense.bias is not None))
    norm = layer.input_layernorm
    layer.input_layernorm = ReusingRMSNorm(norm.weight.shape[0], eps=norm.variance_epsilon)


@dataclass(frozen=True)
class Projection:
    """How a projection is made of units or neurons: what it is ordered by (a field of the plan), on which side, and the sizes
    of the parts that each hold all of them in order."""

    ordered_by: Literal["heads", "ffn"]
    side: Literal["rows", "columns"]
    parts: tuple[int, ...]


Rope = tuple[torch.Tensor, torch.Tensor]  # cosine, sine: [B, rows, H]


def _rotated(states: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Rotary embedding of [B, heads, rows, H], in fewer passes over memory than turning the halves around first."""
    cos, sin = (part.unsqueeze(1) for part in rope)
    half = states.shape[-1] // 2
    first, second = states[..., :half], states[..., half:]
    rotated = states * cos
    rotated[..., :half].addcmul_(second, sin[..., :half], value=-1)
    rotated[..., half:].addcmul_(first, sin[..., half:])
    return rotated


@dataclass(frozen=True)
class Streams:
    """What the layers of one forward share: the rows' positions, their masks, the cache to fill, and in training, which rows are
    answers: [B, S] bool."""

    text: TextTokens
    text_rope: Rope
    text_masks: TextMasks
    visual: VisualTokens | None
    visual_rope: Rope | None
    stage: StageMasks | None
    cache: VisualCache | None
    unit_rows: UnitRows
    supervised: torch.Tensor | None


class SparseDecoderLayerMixin:
    """Forward of one decoder layer over both streams; mixed in before the transformers layer class."""

    def __init__(self, config, layer_idx: int):
        super().__init__(config, layer_idx)
        make_narrow(self)

    def forward(
        self,
        text: torch.Tensor,
        visual: torch.Tensor | None,
        live: LiveLayer,
        units: Units,
        neurons: int | torch.Tensor,
        streams: Streams,
        rank: Rank | None = None,
        gates: LayerGates | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """One layer.

        Args:
            text: [B, T, D]. visual: [B, V, D], or None when no visual row is carried.
            live, units, neurons: this layer's part of the plan; `neurons` serve visual rows in the FFN.
            rank: how visual tokens are ranked after this layer, where it is by this layer's attention.
            gates: on what the plan serves, all units and neurons; None: there are none.

        Returns:
            text, visual and, where `rank` is given, the attention that visual tokens receive [B, V], fp32.
        """
        attention = self.self_attn
        cache = VisualCacheLayer(kept=False) if streams.cache is None else streams.cache.layers[attention.layer_idx]
        text_normed = self.input_layernorm(text)
        queries = _rotated(self._heads(self.queries(text_normed)), streams.text_rope)
        keys = _rotated(self._heads(self.keys(text_normed)), streams.text_rope)
        values = self._heads(self.values(text_normed))

        visual_normed, visual_keys = None, None
        if visual is not None and live.keys:
            visual_normed = self.input_layernorm(
                visual, streams.unit_rows(visual, self.input_layernorm.variance_epsilon)
            )
            visual_keys = (
                _rotated(self._heads(self.keys(visual_normed, units.key_rows)), streams.visual_rope),
                self._heads(self.values(visual_normed, units.key_rows)),
            )
        cache.update(keys, values, units, visual_keys if live.read else None)

        scores = None
        if rank is not None and rank.by == "text_attention":
            served = units.split_heads(queries)[0]
            scores = text_scores(
                served, cache.joint_keys, attention.scaling, streams.stage, rank.rows, streams.supervised
            )
        visual_update = None
        if visual is not None and live.attend:
            visual_queries = _rotated(self._heads(self.queries(visual_normed, units.query_rows)), streams.visual_rope)
            seen = self._seen_by_visual(visual_keys, live, units, cache)
            if rank is not None and rank.by == "image_attention":
                scores = image_scores(visual_queries, seen[0], attention.scaling, streams.stage, live)
            visual_update = self._visual_attention(visual_queries, visual_keys, seen, live, streams)
        text = text + attention.o_proj(_rows(self._text_attention(queries, units, cache, streams, gates)))
        text = text + self.mlp(self.post_attention_layernorm(text))
        if visual_update is not None:
            visual_update = visual_update if gates is None else gates.of_attention(visual_update)
            visual = visual + attention.o_proj(_rows(visual_update), columns=units.query_rows)
        if visual is not None and live.num_ffn > 0:
            visual = visual + self._narrow_mlp(self.post_attention_layernorm(visual), neurons, gates)
        return text, visual, scores

    # A decoder whose projections are laid out otherwise overrides these five. `rows`: of which units or neurons; None: all.

    def projections(self) -> dict[str, Projection]:
        """By name within the layer."""
        attention, mlp = self.self_attn, self.mlp
        return {
            "self_attn.q_proj": Projection("heads", "rows", (attention.q_proj.out_features,)),
            "self_attn.k_proj": Projection("heads", "rows", (attention.k_proj.out_features,)),
            "self_attn.v_proj": Projection("heads", "rows", (attention.v_proj.out_features,)),
            "self_attn.o_proj": Projection("heads", "columns", (attention.o_proj.in_features,)),
            "mlp.gate_proj": Projection("ffn", "rows", (mlp.gate_proj.out_features,)),
            "mlp.up_proj": Projection("ffn", "rows", (mlp.up_proj.out_features,)),
            "mlp.down_proj": Projection("ffn", "columns", (mlp.down_proj.in_features,)),
        }

    def queries(self, normed: torch.Tensor, rows: Rows = None) -> torch.Tensor:
        """[..., D] -> [..., heads * H]"""
        return self.self_attn.q_proj(normed, rows=rows)

    def keys(self, normed: torch.Tensor, rows: Rows = None) -> torch.Tensor:
        """[..., D] -> [..., units * H]"""
        return self.self_attn.k_proj(normed, rows=rows)

    def values(self, normed: torch.Tensor, rows: Rows = None) -> torch.Tensor:
        """[..., D] -> [..., units * H]"""
        return self.self_attn.v_proj(normed, rows=rows)

    def neurons(self, normed: torch.Tensor, rows: Rows = None) -> torch.Tensor:
        """act(gate) * up: [..., D] -> [..., neurons]"""
        mlp = self.mlp
        return mlp.act_fn(mlp.gate_proj(normed, rows=rows)) * mlp.up_proj(normed, rows=rows)

    def _heads(self, projected: torch.Tensor) -> torch.Tensor:
        """[B, rows, heads * H] -> [B, heads, rows, H]"""
        return projected.unflatten(-1, (-1, self.self_attn.head_dim)).transpose(1, 2)

    def _attend(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Grouped attention [B, heads, Q, H]; without a mask causal, the queries being as many as the keys or one."""
        group = queries.shape[1] // keys.shape[1]
        if group > 1:
            keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
        attention = self.self_attn
        dropout = attention.attention_dropout if self.training else 0.0
        causal = mask is None and queries.shape[2] > 1
        if attention.config._attn_implementation == "eager":
            return _eager_attention(queries, keys, values, mask, dropout, causal, attention.scaling)
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=attention.scaling
        )

    def _text_attention(
        self,
        queries: torch.Tensor,
        units: Units,
        cache: VisualCacheLayer,
        streams: Streams,
        gates: LayerGates | None,
    ) -> torch.Tensor:
        """Text rows over text, and in served units over the visual tokens as well."""
        if cache.joint_keys is None:
            return self._attend(queries, cache.keys, cache.values, streams.text_masks.mask)
        if gates is not None:
            stage = streams.stage
            mask = gates.text_mask(stage.mask, stage.keys.is_text, queries.shape[1], queries.dtype)
            return self._attend(queries, cache.joint_keys, cache.joint_values, mask)
        served, rest = units.split_heads(queries)
        served = self._attend(served, cache.joint_keys, cache.joint_values, streams.stage.mask)
        if units.all_served:
            return served
        return units.merge_heads(served, self._attend(rest, cache.keys, cache.values, streams.text_masks.mask))

    @staticmethod
    def _seen_by_visual(
        visual_keys: tuple[torch.Tensor, torch.Tensor], live: LiveLayer, units: Units, cache: VisualCacheLayer
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [B, served, L, H] of what visual rows may see: in order, visual rows and text."""
        if live.read:
            return cache.joint_keys, cache.joint_values
        # A blind layer caches text alone: its visual rows are put before it for this forward only.
        texts = (units.split(part)[0] for part in (cache.keys, cache.values))
        return tuple(torch.cat(pair, dim=2) for pair in zip(visual_keys, texts, strict=True))

    def _visual_attention(
        self,
        queries: torch.Tensor,
        visual_keys: tuple[torch.Tensor, torch.Tensor],
        seen: tuple[torch.Tensor, torch.Tensor],
        live: LiveLayer,
        streams: Streams,
    ) -> torch.Tensor:
        """Visual rows, in the served units, over the text before them and over visual rows: near ones, or all."""
        stage = streams.stage
        tiles = stage.tiles(live.radius, live.bidirectional)
        if tiles is not None:  # then nothing was cached before: text is what follows this forward's visual rows
            begin = visual_keys[0].shape[2]
            before = (part[:, :, begin : begin + stage.text_before] for part in seen)
            return neighbor_attention(queries, *visual_keys, *before, stage.text_mask(), tiles, self.self_attn.scaling)
        return self._attend(queries, *seen, stage.visual_mask(live.read, live.radius, live.bidirectional))

    def _narrow_mlp(self, normed: torch.Tensor, neurons: int | torch.Tensor, gates: LayerGates | None) -> torch.Tensor:
        hidden = self.neurons(normed, neurons)
        hidden = hidden if gates is None else gates.of_neurons(hidden)
        return self.mlp.down_proj(hidden, columns=neurons)


def _rows(heads: torch.Tensor) -> torch.Tensor:
    """[B, heads, rows, H] -> [B, rows, heads * H]"""
    return heads.transpose(1, 2).flatten(2)


def _eager_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    causal: bool,
    scale: float,
) -> torch.Tensor:
    """`scaled_dot_product_attention` written out: on CPUs its backward takes a fraction of the fused one's time for as few rows
    as text has."""
    logits = (queries * scale) @ keys.transpose(2, 3)
    if causal:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=logits.dtype, device=mask.device).masked_fill(~mask, -torch.inf)
        logits = logits + mask
    weights = logits.softmax(dim=-1)
    return (F.dropout(weights, dropout) if dropout else weights) @ values
