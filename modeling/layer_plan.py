"""One layer of the visual plan. It says what the layer does for visual tokens.

A *unit* is a key/value group of attention heads. With multi-head attention it is one head.
"""

import difflib
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeAlias, TypeGuard

from .user_error import UserError

ATTENTION_RANKINGS = ("text_attention", "image_attention")
"""Rankings by the attention of the layer before, which therefore has to be computed."""
RANKINGS = (*ATTENTION_RANKINGS, "cls_attention", "uniform", "random")
RANKING_ROWS = ("last", "instruction")

Served: TypeAlias = int | tuple[int, ...]
"""Units or FFN neurons that serve visual tokens: the number n of the first ones, or their indices."""


def refuse_unknown_keys(given: object, cls: Any, where: str) -> None:
    """Raises UserError if `given` is not a JSON object, or has a key that is no field of the dataclass `cls`.

    Args:
        where: what the message begins with.
    """
    if not isinstance(given, dict):
        raise UserError(f"{where}: expected an object, got {given!r}")
    known = [f.name for f in fields(cls)]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key)[:100], known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"
            raise UserError(f"{where}: unknown key '{key}'{hint}")


def is_int(value: object) -> TypeGuard[int]:
    """Returns whether a value of a JSON object is an integer. True and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class Rank:
    """How visual tokens are ranked where `tokens` falls. If two rank equally, the earlier one is kept.

    `by` is one of these:

    - `text_attention`: the attention that the token receives from text in the layer before, after softmax, mean over
      the heads that serve visual tokens.
    - `image_attention`: the same from the visual rows of its own image (HiMAP, arXiv 2503.13108). Pictures of a prompt
      do not rank each other's tokens.
    - `cls_attention`: the attention of the vision tower's class token, mean over its heads (FasterVLM, arXiv
      2412.01818).
    - `uniform`: tokens evenly spaced among those that an image still has.
    - `random`: a fixed order that the seed decides.

    Args:
        by: the kind of ranking.
        rows: which text rows count in `text_attention`. `last` is the last token of the prompt (FastV, arXiv
            2403.06764). `instruction` is every row of the prompt after the image.
        tower_layers: for `cls_attention`, the number of layers of the tower over which attention is summed. The last of
            them is the layer that is read. VTC-CLS (arXiv 2412.05819) takes 7 of CLIP-L's.
        seed: for `random`, at least 0 and below 2^32. A token's rank depends on it, on the number of its image in the
            sample, and on its own number in the image.

    Raises:
        UserError: a value that is not allowed, or a field that the kind of ranking does not use.
    """

    by: str = "text_attention"
    rows: str = "last"
    tower_layers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.by not in RANKINGS:
            raise UserError(f"rank.by: got {self.by!r}, allowed: {', '.join(RANKINGS)}")
        if self.rows not in RANKING_ROWS:
            raise UserError(f"rank.rows: got {self.rows!r}, allowed: {', '.join(RANKING_ROWS)}")
        if not (is_int(self.seed) and 0 <= self.seed < 2**32):
            raise UserError(f"rank.seed: got {self.seed!r}, allowed: an integer >= 0 below 2^32")
        if not (is_int(self.tower_layers) and self.tower_layers >= 1):
            raise UserError(f"rank.tower_layers: got {self.tower_layers!r}, allowed: an integer >= 1")
        for name, kind in (("rows", "text_attention"), ("tower_layers", "cls_attention"), ("seed", "random")):
            if self.by != kind and getattr(self, name) != getattr(Rank, name):
                raise UserError(
                    f"rank.{name}: got {getattr(self, name)!r} with by {self.by!r}, allowed: only with {kind!r}"
                )

    @property
    def by_attention(self) -> bool:
        """Whether the layer before has to compute the attention that its visual tokens receive."""
        return self.by in ATTENTION_RANKINGS

    def to_dict(self) -> dict:
        """Returns the JSON object. It holds `by`, and the fields that differ from their defaults."""
        return {name: value for name, value in asdict(self).items() if name == "by" or value != getattr(Rank, name)}


@dataclass(frozen=True)
class LayerPlan:
    """One decoder layer's part of the plan. The defaults are the dense layer.

    Args:
        tokens: fraction in [0, 1] of each image's original visual tokens that this layer carries. In JSON, a layer
            without it carries what the layer before carries.
        rank: how the carried tokens are chosen where `tokens` falls below the value of the layer before.
        attend: whether visual tokens take this layer's attention update.
        read: whether later text tokens may attend to visual tokens in this layer.
        heads: units that serve visual tokens. None means all, n the first n, a list its indices.
        ffn: FFN neurons that serve visual tokens, given likewise. 0 skips the FFN.
        radius: Chebyshev distance in the image grid within which a visual token sees visual tokens. None means no
            limit.
        bidirectional: whether a visual token also sees later visual tokens within `radius`.

    Raises:
        UserError: a value that is not allowed.
    """

    tokens: float = 1.0
    rank: Rank = field(default_factory=Rank)
    attend: bool = True
    read: bool = True
    heads: Served | None = None
    ffn: Served | None = None
    radius: int | None = None
    bidirectional: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.tokens, bool) or not isinstance(self.tokens, (int, float)) or not 0 <= self.tokens <= 1:
            raise UserError(f"tokens: got {self.tokens!r}, allowed: a fraction in [0, 1]")
        for name in ("attend", "read", "bidirectional"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name}: got {getattr(self, name)!r}, allowed: true or false")
        for name in ("heads", "ffn"):
            object.__setattr__(self, name, self._units(name, getattr(self, name)))
        if self.radius is not None and not (is_int(self.radius) and 0 <= self.radius < 2**31):
            raise UserError(f"radius: got {self.radius!r}, allowed: null or an integer >= 0 below 2^31")
        if self.bidirectional and self.radius is None:
            raise UserError("bidirectional: got true without a radius, allowed: only together with 'radius'")
        object.__setattr__(self, "tokens", float(self.tokens))

    @staticmethod
    def _units(name: str, value: object) -> Served | None:
        """Returns the value of field `name`, a list as a tuple. Raises UserError if it is not allowed."""
        if value is None:
            return None
        if is_int(value) and value >= 0:
            return value
        if isinstance(value, (list, tuple)) and all(map(is_int, value)) and min(value, default=0) >= 0:
            if len(set(value)) == len(value):
                return tuple(value)
            raise UserError(f"{name}: got a list with a repeated index, allowed: each index once")
        raise UserError(f"{name}: got {value!r}, allowed: null, an integer >= 0 or a list of indices >= 0")

    @classmethod
    def from_dict(cls, given: dict, before: "LayerPlan") -> "LayerPlan":
        """Returns the layer of a JSON object, given the layer before it. Raises UserError if it is not one."""
        refuse_unknown_keys(given, cls, "layer")
        values = {"tokens": before.tokens, **given}
        if "rank" in values:
            refuse_unknown_keys(values["rank"], Rank, "rank")
            values["rank"] = Rank(**values["rank"])
        return cls(**values)

    def to_dict(self, before: "LayerPlan") -> dict:
        """Returns the JSON object, given the layer before.

        It holds the fields that differ from the dense layer, and `tokens` if it differs from the layer before.
        """
        dense = LayerPlan(tokens=before.tokens)
        changed = {
            f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != getattr(dense, f.name)
        }
        if "rank" in changed:
            changed["rank"] = self.rank.to_dict()
        return {key: list(value) if isinstance(value, tuple) else value for key, value in changed.items()}


def num_served(units: Served | None, total: int) -> int:
    """Returns how many of `total` units or neurons a plan's `heads` or `ffn` value names."""
    if units is None:
        return total
    return units if isinstance(units, int) else len(units)


def num_kept(fraction: float, num_tokens: int) -> int:
    """Returns how many of an image's `num_tokens` original tokens are carried, which is ceil(fraction * num_tokens).

    The rounding error of the product does not add a token.
    """
    return math.ceil(round(fraction * num_tokens, 6))
