"""A layer of the visual plan: what it does for visual tokens, and for whom.

A *unit* is a key/value group of attention heads (with multi-head attention: one head).
"""

import difflib
import math
from dataclasses import asdict, dataclass, field, fields

from .user_error import UserError

ATTENTION_RANKINGS = ("text_attention", "image_attention")
"""By the attention of the layer before, which therefore has to be computed."""
RANKINGS = (*ATTENTION_RANKINGS, "cls_attention", "uniform", "random")
RANKING_ROWS = ("last", "instruction")


def refuse_unknown_keys(given: dict, cls: type, where: str) -> None:
    if not isinstance(given, dict):
        raise UserError(f"{where}: expected an object, got {given!r}")
    known = [f.name for f in fields(cls)]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"
            raise UserError(f"{where}: unknown key '{key}'{hint}")


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
            raise UserError(f"rank.by: got {self.by!r}, allowed: {', '.join(RANKINGS)}")
        if self.rows not in RANKING_ROWS:
            raise UserError(f"rank.rows: got {self.rows!r}, allowed: {', '.join(RANKING_ROWS)}")
        if not (_is_int(self.seed) and 0 <= self.seed < 2**32):
            raise UserError(f"rank.seed: got {self.seed!r}, allowed: an integer >= 0 below 2^32")
        if not (_is_int(self.tower_layers) and self.tower_layers >= 1):
            raise UserError(f"rank.tower_layers: got {self.tower_layers!r}, allowed: an integer >= 1")
        for name, kind in (("rows", "text_attention"), ("tower_layers", "cls_attention"), ("seed", "random")):
            if self.by != kind and getattr(self, name) != getattr(Rank, name):
                raise UserError(
                    f"rank.{name}: got {getattr(self, name)!r} with by {self.by!r}, allowed: only with {kind!r}"
                )

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
            raise UserError(f"tokens: got {self.tokens!r}, allowed: a fraction in [0, 1]")
        for name in ("attend", "read", "bidirectional"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name}: got {getattr(self, name)!r}, allowed: true or false")
        for name in ("heads", "ffn"):
            object.__setattr__(self, name, self._units(name, getattr(self, name)))
        if self.radius is not None and not (_is_int(self.radius) and self.radius >= 0):
            raise UserError(f"radius: got {self.radius!r}, allowed: null or an integer >= 0")
        if self.bidirectional and self.radius is None:
            raise UserError("bidirectional: got true without a radius, allowed: only together with 'radius'")
        object.__setattr__(self, "tokens", float(self.tokens))

    @staticmethod
    def _units(name: str, value):
        if value is None or (_is_int(value) and value >= 0):
            return value
        if isinstance(value, (list, tuple)) and all(_is_int(i) and i >= 0 for i in value):
            if len(set(value)) == len(value):
                return tuple(value)
            raise UserError(f"{name}: got a list with a repeated index, allowed: each index once")
        raise UserError(f"{name}: got {value!r}, allowed: null, an integer >= 0 or a list of indices >= 0")

    @classmethod
    def from_dict(cls, given: dict, before: "LayerPlan") -> "LayerPlan":
        """Reads one layer's JSON object; `before` is the layer above it."""
        refuse_unknown_keys(given, cls, "layer")
        values = {"tokens": before.tokens, **given}
        if "rank" in values:
            refuse_unknown_keys(values["rank"], Rank, "rank")
            values["rank"] = Rank(**values["rank"])
        return cls(**values)

    def to_dict(self, before: "LayerPlan") -> dict:
        """The JSON object: fields that differ from the dense layer, `tokens` where it differs from `before`."""
        dense = LayerPlan(tokens=before.tokens)
        changed = {
            f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != getattr(dense, f.name)
        }
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
