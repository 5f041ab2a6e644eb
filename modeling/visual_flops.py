"""What a visual plan costs. The count is analytic, and equals what the two-stream decoder executes.

The literature counts in four ways, and a plan's cost is given in all of them:

- A: multiply-accumulates of the visual tokens alone (FastV, PyramidDrop).
- B: FLOPs of the same, which is 2 A (YOPO).
- C: FLOPs of the decoder's whole prefill, text included (ShortV eq. 3, VTW, p-MoD).
- D: C with vision tower and projector (DiffPrune).

Attention is counted in full, not halved for the causal mask. Norms, softmax, embedding and lm_head are left out in all
four. The class token's row of a ranking by `cls_attention` is left out too. For each block of the tower that ranks, it
takes the block's keys once more, which is one part of the block in 12.

Costs are compared with those of the *stock* model (`dense_cost`). The dense *plan* costs a little less. Nothing reads
what the last layer would add to visual tokens, so the decoder does not compute it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig

from .layer_plan import Rank, num_kept
from .neighbor_attention import tile_slots, tiles_pay
from .visual_layout import Images, num_tokens
from .visual_plan import LiveLayer, VisualPlan


@dataclass(frozen=True)
class Work:
    """What one layer does for a visual token, in numbers of units and neurons.

    Costs are linear in these numbers. They may therefore be expectations, and tensors.

    Attributes:
        neurons: FFN neurons that are computed.
        key_units: units whose keys and values are computed.
        query_units: units whose queries attend.
        read_units: units whose visual keys text reads.
    """

    neurons: float
    key_units: float
    query_units: float
    read_units: float

    @classmethod
    def of(cls, layer: LiveLayer) -> "Work":
        """Returns the work of a layer of a plan."""
        return cls(
            neurons=layer.num_ffn,
            key_units=layer.num_heads if layer.keys else 0,
            query_units=layer.num_heads if layer.attend else 0,
            read_units=layer.num_heads if layer.read else 0,
        )


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder like Llama's, with a gated FFN of three matrices and key/value groups of heads."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> "DecoderShape":
        """Returns the sizes in a text model's config."""
        return cls(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads,
        )

    @property
    def query_size(self) -> int:
        """Width of the query projection, and of the output projection. A pair of tokens costs this much per product."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the key projection, and of the value projection."""
        return self.num_kv_heads * self.head_dim

    def stock_layers(self) -> tuple[LiveLayer, ...]:
        """Returns what the stock model executes for visual tokens, which is everything in every layer."""
        layer = LiveLayer(
            tokens=1.0,
            rank=Rank(),
            keep=False,
            attend=True,
            read=True,
            heads=self.num_kv_heads,
            num_heads=self.num_kv_heads,
            ffn=self.intermediate_size,
            num_ffn=self.intermediate_size,
            radius=None,
            bidirectional=False,
        )
        return (layer,) * self.num_layers

    def live_layers(self, plan: VisualPlan) -> tuple[LiveLayer, ...]:
        """Returns what the decoder executes under the plan. Raises UserError if the plan does not fit."""
        plan.check(self.num_layers, self.num_kv_heads, self.intermediate_size)
        return plan.live(self.num_kv_heads, self.intermediate_size)


@dataclass(frozen=True)
class PlanCost:
    """Cost of one prefill of one sample.

    Attributes:
        macs_visual: cost A.
        flops_visual: cost B.
        flops_prefill: cost C.
        flops_total: cost D, or None where the vision tower's cost was not given.
    """

    macs_visual: int
    flops_visual: int
    flops_prefill: int
    flops_total: int | None


def visual_tokens(layer: LiveLayer, images: Images) -> int:
    """Returns how many visual tokens the layer carries. Of each image it is ceil(tokens * N)."""
    return sum(num_kept(layer.tokens, num_tokens(image)) for image in images)


def plan_cost(
    plan: VisualPlan,
    decoder: DecoderShape,
    images: Images,
    text_tokens: int = 64,
    text_before: int | None = None,
    vision_macs: int | None = None,
) -> PlanCost:
    """Returns the cost of the plan as executed, dead work left out.

    Args:
        images: the grids of each image of the sample.
        text_tokens: number of text tokens of the sample.
        text_before: how many of the text tokens precede the images. Tiles of neighbour attention meet these alone. The
            others rank visual tokens if the instruction does. None means that all text tokens do both, which is the
            full count of the published conventions.
        vision_macs: multiply-accumulates of vision tower and projector for these images.

    Raises:
        UserError: the plan does not fit the decoder.
    """
    return _cost(decoder.live_layers(plan), decoder, images, text_tokens, text_before, vision_macs)


def dense_cost(
    decoder: DecoderShape,
    images: Images,
    text_tokens: int = 64,
    text_before: int | None = None,
    vision_macs: int | None = None,
) -> PlanCost:
    """Returns the cost of the stock model, which every fraction refers to. Arguments are as in `plan_cost`."""
    return _cost(decoder.stock_layers(), decoder, images, text_tokens, text_before, vision_macs)


def visual_fraction(plan: VisualPlan, decoder: DecoderShape, images: Images) -> float:
    """Returns the share of the stock model's visual FLOPs that is left (cost B)."""
    return plan_cost(plan, decoder, images).flops_visual / dense_cost(decoder, images).flops_visual


def visual_fraction_by_layer(plan: VisualPlan, decoder: DecoderShape, images: Images) -> tuple[float, ...]:
    """Returns the `visual_fraction` of each layer, compared with the same layer of the stock model."""
    layers = zip(decoder.live_layers(plan), decoder.stock_layers(), strict=True)
    return tuple(
        layer_visual_macs(Work.of(layer), layer, decoder, images)
        / layer_visual_macs(Work.of(stock), stock, decoder, images)
        for layer, stock in layers
    )


def model_fraction(plan: VisualPlan, decoder: DecoderShape, images: Images, text_tokens: int = 64) -> float:
    """Returns the share of the stock decoder's prefill FLOPs that is left (cost C)."""
    sparse, dense = plan_cost(plan, decoder, images, text_tokens), dense_cost(decoder, images, text_tokens)
    return sparse.flops_prefill / dense.flops_prefill


def kv_bytes(plan: VisualPlan, decoder: DecoderShape, images: Images, text_tokens: int, bytes_per_value: int) -> int:
    """Returns the bytes of keys and values held after prefill.

    Every layer holds text. A layer holds visual tokens if text reads them.
    """
    return _kv_bytes(decoder.live_layers(plan), decoder, images, text_tokens, bytes_per_value)


def dense_kv_bytes(decoder: DecoderShape, images: Images, text_tokens: int, bytes_per_value: int) -> int:
    """Returns the same for the stock model."""
    return _kv_bytes(decoder.stock_layers(), decoder, images, text_tokens, bytes_per_value)


def _kv_bytes(
    layers: Sequence[LiveLayer], decoder: DecoderShape, images: Images, text_tokens: int, bytes_per_value: int
) -> int:
    values = _whole(sum(layer_kv_values(Work.of(layer), layer, decoder, images, text_tokens) for layer in layers))
    return values * bytes_per_value


def _cost(
    layers: Sequence[LiveLayer],
    decoder: DecoderShape,
    images: Images,
    text_tokens: int,
    text_before: int | None,
    vision_macs: int | None,
) -> PlanCost:
    before = text_tokens if text_before is None else text_before
    visual = _whole(sum(layer_visual_macs(Work.of(layer), layer, decoder, images) for layer in layers))
    shared = _whole(
        sum(layer_shared_macs(Work.of(layer), layer, decoder, images, text_tokens, before) for layer in layers)
    )
    ranking = ranking_macs(layers, decoder, images, text_tokens, text_before)
    prefill = 2 * (visual + shared + ranking)
    total = None if vision_macs is None else prefill + 2 * vision_macs
    return PlanCost(macs_visual=visual, flops_visual=2 * visual, flops_prefill=prefill, flops_total=total)


def _whole(value: float) -> int:
    """Returns a cost of a plan as the integer that it is. Work that is an expectation has no such cost."""
    assert isinstance(value, int)
    return value


def _tile_slots(layer: LiveLayer, images: Images) -> tuple[int, int] | None:
    """Returns query slots and pair slots if visual attention of the layer runs in tiles, or None if it does not."""
    if layer.radius is None:
        return None
    query_slots, pair_slots = tile_slots([grid for image in images for grid in image], layer.radius)
    return (query_slots, pair_slots) if tiles_pay(visual_tokens(layer, images), pair_slots) else None


def layer_visual_macs(work: Work, layer: LiveLayer, decoder: DecoderShape, images: Images) -> float:
    """Returns the multiply-accumulates of visual rows for `work`: projections, FFN, attention among themselves.

    The layer only tells how many tokens there are and how far they see.
    """
    tokens, tiled = visual_tokens(layer, images), _tile_slots(layer, images)
    pairs = tokens**2 if tiled is None else tiled[1]
    kv, query = work.key_units * decoder.head_dim, work.query_units * _unit_width(decoder)
    ffn = tokens * 3 * decoder.hidden_size * work.neurons
    return ffn + tokens * 2 * decoder.hidden_size * (kv + query) + 2 * pairs * query


def layer_shared_macs(
    work: Work, layer: LiveLayer, decoder: DecoderShape, images: Images, text_tokens: int, before: int
) -> float:
    """Returns the multiply-accumulates of text rows, and of pairs of a text row and a visual row, either way."""
    tokens, tiled = visual_tokens(layer, images), _tile_slots(layer, images)
    projections = 2 * decoder.query_size + 2 * decoder.kv_size
    text = text_tokens * decoder.hidden_size * (projections + 3 * decoder.intermediate_size)
    text += 2 * text_tokens**2 * decoder.query_size
    pairs = tokens * text_tokens if tiled is None else tiled[0] * before
    return text + 2 * (text_tokens * tokens * work.read_units + pairs * work.query_units) * _unit_width(decoder)


def layer_kv_values(work: Work, layer: LiveLayer, decoder: DecoderShape, images: Images, text_tokens: int) -> float:
    """Returns how many numbers the keys and values held after prefill have."""
    tokens_times_units = text_tokens * decoder.num_kv_heads + visual_tokens(layer, images) * work.read_units
    return 2 * tokens_times_units * decoder.head_dim


def ranking_macs(
    layers: Sequence[LiveLayer], decoder: DecoderShape, images: Images, text_tokens: int, text_before: int | None
) -> int:
    """Returns the multiply-accumulates that only rank tokens, of all layers."""
    return sum(
        _ranking_macs(layer, above, decoder, images, text_tokens, text_before)
        for layer, above in zip(layers[1:], layers[:-1], strict=True)
    )


def _ranking_macs(
    layer: LiveLayer, above: LiveLayer, decoder: DecoderShape, images: Images, text_tokens: int, before: int | None
) -> int:
    """Returns the multiply-accumulates of the query-key product that ranks the tokens of the layer `above`.

    It is 0 where no token is left out, or where the ranking is by no attention.
    """
    if not (layer.keep and layer.rank.by_attention):
        return 0
    tokens = visual_tokens(above, images)
    if layer.rank.by == "image_attention":
        rows = tokens
    elif layer.rank.rows == "last":
        rows = 1
    else:
        rows = text_tokens if before is None else text_tokens - before
    return rows * (tokens + text_tokens) * above.num_heads * _unit_width(decoder)


def _unit_width(decoder: DecoderShape) -> int:
    """Returns the width of one unit's queries."""
    return decoder.head_dim * (decoder.num_heads // decoder.num_kv_heads)
