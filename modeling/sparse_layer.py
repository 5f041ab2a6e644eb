"""One decoder layer over two streams, text rows and visual rows.

Visual rows use a part of the dense weights. If the plan freezes them, they skip the sub-layer. If text does not read
them in a layer, that layer holds no visual keys.
The mixin serves layers that are built like Llama's: `self_attn` with q, k, v and o projections, a gated `mlp`, two
norms.

Shapes: B batch, S sequence rows, T text rows, V visual rows, Q queries, L keys, D hidden size, H head_dim. A unit is
one key/value head with its query heads.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from .grouped_attention import eager_attention, fused_attention
from .layer_plan import Rank
from .narrow_linear import Selection, narrow
from .neighbor_attention import neighbor_attention
from .visual_cache import VisualCacheLayer
from .visual_gates import LayerGates
from .visual_layout import TextTokens, VisualTokens
from .visual_masks import StageMasks, TextMasks
from .visual_plan import LiveLayer
from .visual_ranking import image_scores, text_scores
from .visual_units import UnitSplit

Rope: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Rotary embedding of a stream: its cosine [B, 1, rows, H], and its sine for the first and the second half of H."""

T = TypeVar("T")


class FusedRMSNorm(LlamaRMSNorm):
    """Llama's norm as torch's one operation.

    Text has so few rows that on a GPU a layer's time is that of starting its kernels, and Llama's own norm has eight.
    It can take rows that are already scaled to unit mean square, and then only applies its weight.
    """

    def forward(self, hidden_states: torch.Tensor, scaled: torch.Tensor | None = None) -> torch.Tensor:
        if scaled is not None:
            return self.weight * scaled
        return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)


class ScaledRows:
    """Visual rows at unit mean square, for all layers that see the same rows.

    Frozen rows are then scaled once, not in every layer. This is done without gradients only, because a checkpointed
    layer that is run again must do again what it did.
    """

    def __init__(self) -> None:
        self._rows: torch.Tensor | None = None
        self._scaled: torch.Tensor | None = None

    def __call__(self, rows: torch.Tensor, epsilon: float) -> torch.Tensor | None:
        """Returns rows [B, V, D] as `LlamaRMSNorm` scales them, or None where each layer has to do it."""
        if torch.is_grad_enabled():
            return None
        if rows is not self._rows:
            wide = rows.float()
            self._scaled = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(rows.dtype)
            self._rows = rows
        return self._scaled


@dataclass(frozen=True)
class Projection:
    """How a projection is made of units or neurons.

    Attributes:
        ordered_by: the field of the plan that orders them.
        side: whether they are rows or columns of the weight.
        parts: sizes of the parts along that side. Each part holds all units or neurons in order.
    """

    ordered_by: Literal["heads", "ffn"]
    side: Literal["rows", "columns"]
    parts: tuple[int, ...]


@dataclass(frozen=True)
class SharedInputs:
    """What the layers of one forward share, as long as they carry the same visual tokens.

    Attributes:
        text, visual: the text rows, and the visual rows or None.
        text_rope, visual_rope: their rotary embeddings.
        text_masks: masks of the text rows alone.
        stage: masks of text and visual rows, or None if neither this forward nor the cache has pictures.
        cache: the cache to fill, of layers that visual_cache.py makes, or None.
        scaled_rows: visual rows at unit mean square.
    """

    text: TextTokens
    text_rope: Rope
    text_masks: TextMasks
    visual: VisualTokens | None
    visual_rope: Rope | None
    stage: StageMasks | None
    cache: Cache | None
    scaled_rows: ScaledRows


class _VisualProjections(NamedTuple):
    """Visual rows' queries [B, served heads, V, H], or None where they are not updated, and their keys and values.

    Keys and values are [B, served units, V, H].
    """

    queries: torch.Tensor | None
    keys: torch.Tensor
    values: torch.Tensor


class SparseDecoderLayerMixin(nn.Module):
    """Forward of one decoder layer over both streams. It is mixed in before the transformers layer class."""

    if TYPE_CHECKING:  # modules of the stock layer
        self_attn: Any
        mlp: Any
        input_layernorm: Any
        post_attention_layernorm: Any

    def __init__(self, config: PreTrainedConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        for name in ("input_layernorm", "post_attention_layernorm"):
            setattr(self, name, FusedRMSNorm(config.hidden_size, eps=config.rms_norm_eps))

    def forward(
        self,
        text: torch.Tensor,
        visual: torch.Tensor | None,
        live: LiveLayer,
        units: UnitSplit,
        neurons: int | torch.Tensor,
        shared: SharedInputs,
        rank: Rank | None = None,
        gates: LayerGates | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Runs the layer.

        Args:
            text: [B, T, D].
            visual: [B, V, D], or None if no visual row is carried.
            live: what this layer does for visual tokens.
            units: the split of its heads by the units that serve visual tokens.
            neurons: FFN neurons that serve visual tokens, the first n or indices.
            shared: what the layers share.
            rank: how visual tokens are ranked after this layer, if it is by this layer's attention. Else None.
            gates: this layer's gates, under a plan where all units and neurons serve visual tokens. None means no
                gates.

        Returns:
            text [B, T, D], visual [B, V, D] or None, and the attention [B, V], fp32, that visual tokens receive, or
            None if `rank` is None.
        """
        cache = self._cache(shared)
        queries, keys, values = self._text_projections(text, shared.text_rope)
        projected = None
        if visual is not None and live.keys:
            projected = self._visual_projections(visual, live, units, shared)
        cache.update(keys, values, units, projected[1:] if projected is not None and live.read else None)

        scores = None
        if rank is not None and rank.by == "text_attention":
            scores = self._text_scores(queries, units, cache, shared, rank)
        visual_update = None
        if projected is not None and projected.queries is not None:
            seen = self._seen_by_visual(projected, live, units, cache)
            if rank is not None and rank.by == "image_attention":
                scores = image_scores(projected.queries, seen[0], self.self_attn.scaling, _required(shared.stage), live)
            visual_update = self._visual_attention(projected, seen, live, shared)
        text = text + self.self_attn.o_proj(_merge_heads(self._text_attention(queries, units, cache, shared, gates)))
        text = text + self.mlp(self.post_attention_layernorm(text))
        if visual is not None and visual_update is not None:
            visual_update = visual_update if gates is None else gates.gate_attention(visual_update)
            visual = visual + narrow(self.self_attn.o_proj, _merge_heads(visual_update), columns=units.query_rows)
        if visual is not None and live.num_ffn > 0:
            visual = visual + self._narrow_mlp(self.post_attention_layernorm(visual), neurons, gates)
        return text, visual, scores

    # A decoder whose projections are laid out in another way overrides these four.

    def projections(self) -> dict[str, Projection]:
        """Returns the layer's projections by their names within the layer."""
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

    def queries_keys_values(
        self, normed: torch.Tensor, query_rows: Selection = None, key_rows: Selection = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns queries [..., heads * H], keys and values [..., units * H] of normed rows [..., D].

        Args:
            query_rows: which outputs of the query projection are computed.
            key_rows: the same for the key projection, and for the value projection.
        """
        return narrow(self.self_attn.q_proj, normed, query_rows), *self.keys_values(normed, key_rows)

    def keys_values(self, normed: torch.Tensor, rows: Selection = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns keys and values, each [..., units * H], of normed rows [..., D]. `rows` says which are computed."""
        return narrow(self.self_attn.k_proj, normed, rows), narrow(self.self_attn.v_proj, normed, rows)

    def neurons(self, normed: torch.Tensor, rows: Selection = None) -> torch.Tensor:
        """Returns the FFN neurons act(gate) * up [..., neurons] of normed rows [..., D]. `rows` says which."""
        mlp = self.mlp
        return mlp.act_fn(narrow(mlp.gate_proj, normed, rows)) * narrow(mlp.up_proj, normed, rows)

    def _cache(self, shared: SharedInputs) -> VisualCacheLayer:
        """Returns this layer's part of the cache, or one for this forward alone."""
        if shared.cache is None:
            return VisualCacheLayer(persistent=False)
        return shared.cache.layers[self.self_attn.layer_idx]

    def _text_projections(self, text: torch.Tensor, rope: Rope) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns queries [B, heads, T, H], keys and values [B, units, T, H] of text rows [B, T, D]."""
        queries, keys, values = self.queries_keys_values(self.input_layernorm(text))
        return (
            _apply_rope(self._split_heads(queries), rope),
            _apply_rope(self._split_heads(keys), rope),
            self._split_heads(values),
        )

    def _visual_projections(
        self, visual: torch.Tensor, live: LiveLayer, units: UnitSplit, shared: SharedInputs
    ) -> _VisualProjections:
        """Returns what visual rows [B, V, D] have in the units that serve them."""
        rope = _required(shared.visual_rope)
        normed = self.input_layernorm(visual, shared.scaled_rows(visual, self.self_attn.config.rms_norm_eps))
        queries = None
        if live.attend:
            queries, keys, values = self.queries_keys_values(normed, units.query_rows, units.key_rows)
            queries = _apply_rope(self._split_heads(queries), rope)
        else:
            keys, values = self.keys_values(normed, units.key_rows)
        return _VisualProjections(queries, _apply_rope(self._split_heads(keys), rope), self._split_heads(values))

    def _text_scores(
        self, queries: torch.Tensor, units: UnitSplit, cache: VisualCacheLayer, shared: SharedInputs, rank: Rank
    ) -> torch.Tensor:
        """Returns the attention [B, V], fp32, that visual tokens receive from text."""
        served, _ = units.split_heads(queries)
        stage = _required(shared.stage)
        return text_scores(served, cache.joint[0], self.self_attn.scaling, stage, rank.rows)

    def _split_heads(self, projected: torch.Tensor) -> torch.Tensor:
        """Returns [B, heads, rows, H] from [B, rows, heads * H]."""
        return projected.view(*projected.shape[:-1], -1, self.self_attn.head_dim).transpose(1, 2)

    def _attend(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns grouped attention [B, heads, Q, H].

        Without a mask it is causal. There are then as many queries as keys, or one query.
        """
        attention = self.self_attn
        dropout = attention.attention_dropout if self.training else 0.0
        attend = eager_attention if attention.config._attn_implementation == "eager" else fused_attention
        return attend(queries, keys, values, mask, dropout, attention.scaling)

    def _text_attention(
        self,
        queries: torch.Tensor,
        units: UnitSplit,
        cache: VisualCacheLayer,
        shared: SharedInputs,
        gates: LayerGates | None,
    ) -> torch.Tensor:
        """Returns [B, heads, T, H], text rows over text, and in the serving units over visual tokens too."""
        if cache.joint_keys is None:
            return self._attend(queries, *cache.text, shared.text_masks.mask)
        stage = _required(shared.stage)
        if gates is not None:
            mask = gates.text_mask(stage.mask, stage.keys.is_text, queries.shape[1], queries.dtype)
            return self._attend(queries, *cache.joint, mask)
        served_queries, other_queries = units.split_heads(queries)
        served = self._attend(served_queries, *cache.joint, stage.mask)
        if units.all_served:
            return served
        return units.merge_heads(served, self._attend(other_queries, *cache.text, shared.text_masks.mask))

    @staticmethod
    def _seen_by_visual(
        visual: _VisualProjections, live: LiveLayer, units: UnitSplit, cache: VisualCacheLayer
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns keys and values [B, served units, L, H] that visual rows may see, visual rows and text in order."""
        if live.read:
            return cache.joint
        # A layer that text does not read caches text alone. Visual rows are put before it for this forward only.
        text_keys, text_values = (units.split(part)[0] for part in cache.text)
        return torch.cat([visual.keys, text_keys], dim=2), torch.cat([visual.values, text_values], dim=2)

    def _visual_attention(
        self,
        visual: _VisualProjections,
        seen: tuple[torch.Tensor, torch.Tensor],
        live: LiveLayer,
        shared: SharedInputs,
    ) -> torch.Tensor:
        """Returns [B, served heads, V, H], visual rows over the text before them and over near or all visual rows."""
        stage, queries = _required(shared.stage), _required(visual.queries)
        tiles = stage.tiles(live.radius, live.bidirectional)
        if tiles is None:
            return self._attend(queries, *seen, stage.visual_mask(live.read, live.radius, live.bidirectional))
        # With tiles nothing was cached before, so text is what follows this forward's visual rows.
        begin = visual.keys.shape[2]
        text_key, text_value = (part[:, :, begin : begin + stage.text.before_visual] for part in seen)
        return neighbor_attention(
            queries,
            visual.keys,
            visual.values,
            text_key,
            text_value,
            text_mask=stage.text_mask(),
            tiles=tiles,
            scaling=self.self_attn.scaling,
        )

    def _narrow_mlp(self, normed: torch.Tensor, neurons: int | torch.Tensor, gates: LayerGates | None) -> torch.Tensor:
        """Returns the FFN update [B, V, D] of normed visual rows, from these neurons alone."""
        hidden = self.neurons(normed, neurons)
        hidden = hidden if gates is None else gates.gate_neurons(hidden)
        return narrow(self.mlp.down_proj, hidden, columns=neurons)


def _required(value: T | None) -> T:
    """Returns a part of `SharedInputs` that is there because there are visual rows."""
    assert value is not None
    return value


def _merge_heads(heads: torch.Tensor) -> torch.Tensor:
    """Returns [B, rows, heads * H] from [B, heads, rows, H]."""
    return heads.transpose(1, 2).flatten(2)


def _apply_rope(states: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Returns [B, heads, rows, H] after rotary embedding.

    This takes fewer passes over memory than swapping the halves first.
    """
    cosine, sine_of_first, sine_of_second = rope
    half = states.shape[-1] // 2
    first, second = states.split(half, dim=-1)
    rotated = states * cosine
    rotated[..., :half].addcmul_(second, sine_of_first, value=-1)
    rotated[..., half:].addcmul_(first, sine_of_second)
    return rotated
