"""The visual plan: what each decoder layer does for visual tokens, and for whom.

Every method that makes visual tokens cheap is a value of `VisualPlan`: which visual tokens are carried
(`tokens`, `rank`), which take the attention and the FFN update (`attend`, `ffn`), who may read them (`read`),
how wide that work is (`heads`, `ffn`) and how far a visual token looks (`radius`, `bidirectional`).
A layer's defaults are the dense model. Plans are immutable values, stored as JSON in a checkpoint's config.

A *unit* is a key/value group of attention heads (with multi-head attention: one head).
"""

import difflib
import json
import math
import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

ATTENTION_RANKINGS = ("text_attention", "image_attention")
"""By the attention of the layer before, which therefore has to be computed."""
RANKINGS = (*ATTENTION_RANKINGS, "cls_attention", "uniform", "random")
RANKING_ROWS = ("last", "instruction")


def _known_keys(given: dict, cls: type, where: str) -> None:
    if not isinstance(given, dict):
        raise ValueError(f"{where}: expected an object, got {given!r}")
    known = [f.name for f in fields(cls)]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"
            raise ValueError(f"{where}: unknown key '{key}'{hint}")


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class Rank:
    """How visual tokens are ranked where `tokens` falls; of equal ones the earlier is kept.

    Args:
        by: `text_attention` or `image_attention`, the attention they receive in the layer before, post-softmax, mean over the
            served heads, from text or from the visual rows of their own image (HiMAP, arXiv 2503.13108; pictures of a prompt
            do not rank each other's tokens); `cls_attention`, the attention of the vision tower's class token, mean over its
            heads (FasterVLM, arXiv 2412.01818); `uniform`, evenly spaced among those that an image still has; `random`.
        rows: of `text_attention`: from the `last` token of the prompt (FastV, arXiv 2403.06764), or from every prompt row after
            the image (`instruction`).
        tower_layers: of `cls_attention`: summed over so many of the tower's layers, the last of them the one that is read
            (VTC-CLS, arXiv 2412.05819: 7 of CLIP-L's).
        seed: of `random`, below 2^32. With it, the number of its image in the sample and its own in the image, a token's rank
            is fixed.
    """

    by: str = "text_attention"
    rows: str = "last"
    tower_layers: int = 1
    seed: int = 0

    def __post_init__(self):
        if self.by not in RANKINGS:
            raise ValueError(f"rank.by: got {self.by!r}, allowed: {', '.join(RANKINGS)}")
        if self.rows not in RANKING_ROWS:
            raise ValueError(f"rank.rows: got {self.rows!r}, allowed: {', '.join(RANKING_ROWS)}")
        if not (_is_int(self.seed) and 0 <= self.seed < 2**32):
            raise ValueError(f"rank.seed: got {self.seed!r}, allowed: an integer >= 0 below 2^32")
        if not (_is_int(self.tower_layers) and self.tower_layers >= 1):
            raise ValueError(f"rank.tower_layers: got {self.tower_layers!r}, allowed: an integer >= 1")
        for name, kind in (("rows", "text_attention"), ("tower_layers", "cls_attention"), ("seed", "random")):
            if self.by != kind and getattr(self, name) != getattr(Rank, name):
                raise ValueError(f"rank.{name}: got {getattr(self, name)!r} with by {self.by!r}, allowed: only with {kind!r}")

    @property
    def by_attention(self) -> bool:
        """Whether the layer before has to say what attention its visual tokens receive."""
        return self.by in ATTENTION_RANKINGS

    def to_dict(self) -> dict:
        """The JSON object: `by`, and what differs from the defaults."""
        return {name: value for name, value in asdict(self).items() if name == "by" or value != getattr(Rank, name)}


@dataclass(frozen=True)
class LayerPlan:
    """One decoder layer's share of the plan; the defaults are the dense layer.

    Args:
        tokens: fraction in [0, 1] of each image's original visual tokens carried into this layer. In JSON a layer
            without it carries what the layer before carries.
        rank: how survivors are chosen where `tokens` falls below the previous layer's.
        attend: carried visual tokens take this layer's attention update.
        read: later text tokens may attend to carried visual tokens in this layer.
        heads: units that serve visual tokens: None (all), the first n, or a list of them.
        ffn: FFN neurons that serve visual tokens: None (all), the first n, or a list of them; 0 skips the FFN.
        radius: Chebyshev distance in the image grid within which a visual token sees visual tokens; None: no limit.
        bidirectional: within `radius`, also later visual tokens are seen.
    """

    tokens: float = 1.0
    rank: Rank = field(default_factory=Rank)
    attend: bool = True
    read: bool = True
    heads: int | tuple[int, ...] | None = None
    ffn: int | tuple[int, ...] | None = None
    radius: int | None = None
    bidirectional: bool = False

    def __post_init__(self):
        if isinstance(self.tokens, bool) or not isinstance(self.tokens, (int, float)) or not 0 <= self.tokens <= 1:
            raise ValueError(f"tokens: got {self.tokens!r}, allowed: a fraction in [0, 1]")
        for name in ("attend", "read", "bidirectional"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: got {getattr(self, name)!r}, allowed: true or false")
        for name in ("heads", "ffn"):
            object.__setattr__(self, name, self._units(name, getattr(self, name)))
        if self.radius is not None and not (_is_int(self.radius) and self.radius >= 0):
            raise ValueError(f"radius: got {self.radius!r}, allowed: null or an integer >= 0")
        if self.bidirectional and self.radius is None:
            raise ValueError("bidirectional: got true without a radius, allowed: only together with 'radius'")
        object.__setattr__(self, "tokens", float(self.tokens))

    @staticmethod
    def _units(name: str, value):
        if value is None or (_is_int(value) and value >= 0):
            return value
        if isinstance(value, (list, tuple)) and all(_is_int(i) and i >= 0 for i in value):
            if len(set(value)) == len(value):
                return tuple(value)
            raise ValueError(f"{name}: got a list with a repeated index, allowed: each index once")
        raise ValueError(f"{name}: got {value!r}, allowed: null, an integer >= 0 or a list of indices >= 0")

    @classmethod
    def from_dict(cls, given: dict, before: "LayerPlan") -> "LayerPlan":
        """Reads one layer's JSON object; `before` is the layer above it."""
        _known_keys(given, cls, "layer")
        values = {"tokens": before.tokens, **given}
        if "rank" in values:
            _known_keys(values["rank"], Rank, "rank")
            values["rank"] = Rank(**values["rank"])
        return cls(**values)

    def to_dict(self, before: "LayerPlan") -> dict:
        """The JSON object: fields that differ from the dense layer, `tokens` where it differs from `before`."""
        dense = LayerPlan(tokens=before.tokens)
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != getattr(dense, f.name)}
        if "rank" in changed:
            changed["rank"] = self.rank.to_dict()
        return {key: list(value) if isinstance(value, tuple) else value for key, value in changed.items()}


def num_served(units: int | tuple[int, ...] | None, total: int) -> int:
    """How many of `total` units a plan's `heads` or `ffn` value serves."""
    if units is None:
        return total
    return units if isinstance(units, int) else len(units)


def num_kept(fraction: float, num_tokens: int) -> int:
    """ceil(fraction * num_tokens): how many of an image's original tokens are carried. The product's own rounding
    error does not add a token."""
    return math.ceil(round(fraction * num_tokens, 6))


@dataclass(frozen=True)
class LiveLayer:
    """What a layer really executes for visual tokens once dead work is removed (see `VisualPlan.live`).

    `heads` and `ffn` are an integer (the first n) or a tuple of indices; `num_heads`, `num_ffn` their counts.
    `keep` says that survivors are chosen on entry to this layer (`tokens` falls here, to more than nothing).
    """

    tokens: float
    rank: Rank
    keep: bool
    attend: bool
    read: bool
    heads: int | tuple[int, ...]
    num_heads: int
    ffn: int | tuple[int, ...]
    num_ffn: int
    radius: int | None
    bidirectional: bool

    @property
    def keys(self) -> bool:
        """Whether visual keys and values are computed in this layer."""
        return self.read or self.attend


@dataclass(frozen=True)
class VisualPlan:
    """A plan for every decoder layer.

    Raises:
        ValueError: `tokens` grows with depth, or survivors would have to be ranked by attention that is not computed.
    """

    layers: tuple[LayerPlan, ...]
    version: int = 1

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(self.layers))
        if self.version != 1:
            raise ValueError(f"visual plan: got version {self.version!r}, allowed: 1")
        if not self.layers:
            raise ValueError("visual plan: got no layers, allowed: one entry per decoder layer")
        before = LayerPlan()
        for index, layer in enumerate(self.layers):
            if layer.tokens > before.tokens:
                raise ValueError(
                    f"visual plan: layer {index}: tokens: got {layer.tokens} after {before.tokens} in layer {index - 1}, "
                    "allowed: never more than the layer before"
                )
            if 0 < layer.tokens < before.tokens and layer.rank.by_attention:
                self._check_rank(index, layer, before)
            before = layer

    @staticmethod
    def _check_rank(index: int, layer: LayerPlan, before: LayerPlan) -> None:
        """Raises ValueError where tokens fall by an attention that the layer before does not compute."""
        falls = f"visual plan: layer {index}: tokens falls to {layer.tokens} by {layer.rank.by}"
        if index == 0:
            others = ", ".join(kind for kind in RANKINGS if kind not in ATTENTION_RANKINGS)
            raise ValueError(f"{falls}, but no attention precedes layer 0; allowed: 1, 0, or a rank by {others}")
        needed, wanting, allowed = {
            "text_attention": (before.read, "text does not read visual tokens", "is read"),
            "image_attention": (before.attend, "visual tokens do not attend", "attends"),
        }[layer.rank.by]
        if not needed or num_served(before.heads, 1) == 0:
            raise ValueError(
                f"{falls}, but {wanting} in layer {index - 1}; allowed: rank after a layer that {allowed} with at least one head"
            )

    def __len__(self) -> int:
        return len(self.layers)

    @classmethod
    def dense(cls, num_layers: int) -> "VisualPlan":
        return cls(layers=(LayerPlan(),) * num_layers)

    @classmethod
    def from_dict(cls, given: dict) -> "VisualPlan":
        """Reads the JSON form. Raises ValueError naming the layer and the field."""
        _known_keys(given, cls, "visual plan")
        if not isinstance(given.get("layers"), (list, tuple)):
            raise ValueError(f"visual plan: layers: got {given.get('layers')!r}, allowed: a list with one object per layer")
        layers = []
        for index, layer in enumerate(given["layers"]):
            try:
                layers.append(LayerPlan.from_dict(layer, before=layers[-1] if layers else LayerPlan()))
            except ValueError as error:
                raise ValueError(f"visual plan: layer {index}: {error}") from None
        return cls(layers=tuple(layers), version=given.get("version", 1))

    def to_dict(self) -> dict:
        above = (LayerPlan(), *self.layers)
        return {
            "version": self.version,
            "layers": [layer.to_dict(before) for layer, before in zip(self.layers, above, strict=False)],
        }

    @classmethod
    def load(cls, path: str | os.PathLike) -> "VisualPlan":
        """Reads a plan file. Raises ValueError when it is missing, not JSON, or not a plan."""
        try:
            given = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{path}: no such plan file") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a JSON file ({error})") from None
        try:
            return cls.from_dict(given)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def save(self, path: str | os.PathLike) -> None:
        """Writes the plan file whole or not at all."""
        partial = Path(f"{path}.partial")
        partial.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        partial.replace(path)

    def at_depth(self, num_layers: int) -> "VisualPlan":
        """The plan for a model of another depth: each layer as the one at its relative depth."""
        return VisualPlan(tuple(self.layers[index * len(self) // num_layers] for index in range(num_layers)))

    def replace(self, index: int, **changes) -> "VisualPlan":
        """This plan with fields of layer `index` changed. Fewer `tokens` also hold for the layers after it."""
        layers = list(self.layers)
        layers[index] = replace(layers[index], **changes)
        for later in range(index + 1, len(layers)):
            if layers[later].tokens > layers[index].tokens:
                layers[later] = replace(layers[later], tokens=layers[index].tokens)
        return VisualPlan(layers=tuple(layers), version=self.version)

    def check(self, num_layers: int, num_units: int, intermediate_size: int) -> None:
        """Raises ValueError when the plan does not fit a decoder of these sizes."""
        if len(self) != num_layers:
            raise ValueError(f"visual plan: got {len(self)} layers, the model has {num_layers}")
        for index, layer in enumerate(self.layers):
            for name, units, total in (("heads", layer.heads, num_units), ("ffn", layer.ffn, intermediate_size)):
                largest = units if isinstance(units, int) else max(units, default=-1) + 1 if units is not None else 0
                if largest > total:
                    raise ValueError(
                        f"visual plan: layer {index}: {name}: got {units if isinstance(units, int) else largest - 1}, "
                        f"the model has {total}"
                    )

    @property
    def tower_layers(self) -> int:
        """In how many of the vision tower's layers the class token's attention ranks visual tokens; 0: it ranks none."""
        carried = [1.0, *(layer.tokens for layer in self.layers)]
        falling = [layer.rank for layer, before in zip(self.layers, carried, strict=False) if 0 < layer.tokens < before]
        return max((rank.tower_layers for rank in falling if rank.by == "cls_attention"), default=0)

    @property
    def is_integer(self) -> bool:
        """Whether served units come first everywhere, as in an exported checkpoint."""
        return not any(isinstance(units, tuple) for layer in self.layers for units in (layer.heads, layer.ffn))

    def live(self, num_units: int, intermediate_size: int) -> tuple[LiveLayer, ...]:
        """What is executed once dead work is left out.

        A visual update is dead when no later layer's text reads visual tokens: the last layer that is read needs
        their keys and values but neither their attention update nor their FFN, and later layers need nothing.
        """
        readable = [
            layer.read and layer.tokens > 0 and num_served(layer.heads, num_units) > 0 for layer in self.layers
        ]
        last_read = max((index for index, read in enumerate(readable) if read), default=-1)
        live, before = [], 1.0
        for index, layer in enumerate(self.layers):
            tokens = layer.tokens if index <= last_read else 0.0
            updated = index < last_read
            heads = num_units if layer.heads is None else layer.heads
            ffn = intermediate_size if layer.ffn is None else layer.ffn
            attend = layer.attend and updated and num_served(heads, num_units) > 0
            used = attend or readable[index]
            live.append(
                LiveLayer(
                    tokens=tokens,
                    rank=layer.rank,
                    keep=0 < tokens < before,
                    attend=attend,
                    read=readable[index],
                    heads=heads if used else 0,
                    num_heads=num_served(heads, num_units) if used else 0,
                    ffn=ffn if updated else 0,
                    num_ffn=num_served(ffn, intermediate_size) if updated else 0,
                    radius=layer.radius if attend else None,
                    bidirectional=layer.bidirectional and attend,
                )
            )
            before = tokens
        return tuple(live)
