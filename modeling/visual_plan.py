"""The visual plan. It says what each decoder layer does for visual tokens.

Every method that makes visual tokens cheap is a value of `VisualPlan`. In each layer, the plan says:

- which visual tokens are carried (`tokens`, `rank`),
- whether they take the attention update and the FFN update (`attend`, `ffn`),
- whether text may read them (`read`),
- how many heads and neurons do that work (`heads`, `ffn`),
- how far a visual token sees in the picture (`radius`, `bidirectional`).

A layer's defaults are the dense model. A plan is immutable. A checkpoint's config stores it as JSON.
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .json_file import read_json
from .layer_plan import ATTENTION_RANKINGS, RANKINGS, LayerPlan, Rank, Served, is_int, num_served, refuse_unknown_keys
from .user_error import UserError
from .whole_file import whole_file

MOST_LAYERS = 1000
"""A decoder of more layers is refused, before it is built layer by layer. The largest models have about 130."""


@dataclass(frozen=True)
class LiveLayer:
    """What a layer really executes for visual tokens, dead work left out (see `VisualPlan.live`).

    Attributes:
        tokens, rank, radius, bidirectional: as in `LayerPlan`.
        keep: whether tokens are chosen on entry to this layer, because `tokens` falls here to more than 0.
        attend: whether visual tokens take the attention update.
        read: whether text attends to visual tokens.
        heads, ffn: units and FFN neurons that serve visual tokens.
        num_heads, num_ffn: the numbers of them.
    """

    tokens: float
    rank: Rank
    keep: bool
    attend: bool
    read: bool
    heads: Served
    num_heads: int
    ffn: Served
    num_ffn: int
    radius: int | None
    bidirectional: bool

    @property
    def keys(self) -> bool:
        """Whether this layer computes visual keys and values."""
        return self.read or self.attend


@dataclass(frozen=True)
class VisualPlan:
    """A plan for all decoder layers.

    Raises:
        UserError: `tokens` grows with depth, or tokens would be ranked by attention that is not computed.
    """

    layers: tuple[LayerPlan, ...]
    version: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if not is_int(self.version) or self.version != 1:
            raise UserError(f"visual plan: got version {self.version!r}, allowed: 1")
        if not self.layers:
            raise UserError("visual plan: got no layers, allowed: one entry per decoder layer")
        before = LayerPlan()
        for index, layer in enumerate(self.layers):
            if layer.tokens > before.tokens:
                raise UserError(
                    f"visual plan: layer {index}: tokens: got {layer.tokens} after {before.tokens} in layer {index - 1}"
                    ", allowed: never more than the layer before"
                )
            if 0 < layer.tokens < before.tokens and layer.rank.by_attention:
                self._check_rank(index, layer, before)
            before = layer

    @staticmethod
    def _check_rank(index: int, layer: LayerPlan, before: LayerPlan) -> None:
        """Raises UserError if tokens are ranked by attention that the layer before does not compute."""
        falls = f"visual plan: layer {index}: tokens falls to {layer.tokens} by {layer.rank.by}"
        if index == 0:
            others = ", ".join(kind for kind in RANKINGS if kind not in ATTENTION_RANKINGS)
            raise UserError(f"{falls}, but no attention precedes layer 0; allowed: 1, 0, or a rank by {others}")
        needed, wanting, allowed = {
            "text_attention": (before.read, "text does not read visual tokens", "is read"),
            "image_attention": (before.attend, "visual tokens do not attend", "attends"),
        }[layer.rank.by]
        if not needed or num_served(before.heads, 1) == 0:
            raise UserError(
                f"{falls}, but {wanting} in layer {index - 1}; "
                f"allowed: rank after a layer that {allowed} with at least one head"
            )

    def __len__(self) -> int:
        return len(self.layers)

    @classmethod
    def dense(cls, num_layers: int) -> "VisualPlan":
        """Returns the plan of the dense model."""
        return cls(layers=(LayerPlan(),) * num_layers)

    @classmethod
    def from_dict(cls, given: dict) -> "VisualPlan":
        """Returns the plan of a JSON object. Raises UserError that names the layer and the field."""
        refuse_unknown_keys(given, cls, "visual plan")
        if not isinstance(given.get("layers"), (list, tuple)):
            raise UserError(
                f"visual plan: layers: got {given.get('layers')!r}, allowed: a list with one object per layer"
            )
        if len(given["layers"]) > MOST_LAYERS:
            raise UserError(f"visual plan: got {len(given['layers'])} layers, allowed: up to {MOST_LAYERS}")
        layers: list[LayerPlan] = []
        for index, layer in enumerate(given["layers"]):
            try:
                layers.append(LayerPlan.from_dict(layer, before=layers[-1] if layers else LayerPlan()))
            except UserError as error:
                raise UserError(f"visual plan: layer {index}: {error}") from None
        return cls(layers=tuple(layers), version=given.get("version", 1))

    def to_dict(self) -> dict:
        """Returns the JSON object."""
        above = (LayerPlan(), *self.layers)
        return {
            "version": self.version,
            "layers": [layer.to_dict(before) for layer, before in zip(self.layers, above, strict=False)],
        }

    @classmethod
    def load(cls, path: str | os.PathLike) -> "VisualPlan":
        """Returns the plan in a file. Raises UserError if there is none, as `read_json`, or it is not a plan."""
        if not Path(path).exists():
            raise UserError(f"{path}: no such plan file")
        given = read_json(path)
        try:
            return cls.from_dict(given)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def save(self, path: str | os.PathLike) -> None:
        """Writes the plan file whole or not at all."""
        with whole_file(path) as file:
            file.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    def at_depth(self, num_layers: int) -> "VisualPlan":
        """Returns the plan for a model of another depth. Each layer is the one at its relative depth."""
        return VisualPlan(tuple(self.layers[index * len(self) // num_layers] for index in range(num_layers)))

    def replace(self, index: int, **changes: Any) -> "VisualPlan":
        """Returns this plan with fields of layer `index` changed. Fewer `tokens` hold for later layers too."""
        layers = list(self.layers)
        layers[index] = replace(layers[index], **changes)
        for later in range(index + 1, len(layers)):
            if layers[later].tokens > layers[index].tokens:
                layers[later] = replace(layers[later], tokens=layers[index].tokens)
        return VisualPlan(layers=tuple(layers), version=self.version)

    def check(self, num_layers: int, num_units: int, intermediate_size: int) -> None:
        """Raises UserError if the plan does not fit a decoder of these sizes."""
        if len(self) != num_layers:
            raise UserError(f"visual plan: got {len(self)} layers, the model has {num_layers}")
        for index, layer in enumerate(self.layers):
            for name, units, total in (("heads", layer.heads, num_units), ("ffn", layer.ffn, intermediate_size)):
                largest = units if isinstance(units, int) else max(units, default=-1) + 1 if units is not None else 0
                if largest > total:
                    raise UserError(
                        f"visual plan: layer {index}: {name}: got {units if isinstance(units, int) else largest - 1}, "
                        f"the model has {total}"
                    )

    @property
    def tower_layers(self) -> int:
        """In how many layers of the vision tower the class token's attention ranks visual tokens. 0 if in none."""
        carried = [1.0, *(layer.tokens for layer in self.layers)]
        falling = [layer.rank for layer, before in zip(self.layers, carried, strict=False) if 0 < layer.tokens < before]
        return max((rank.tower_layers for rank in falling if rank.by == "cls_attention"), default=0)

    @property
    def is_integer(self) -> bool:
        """Whether the serving units and neurons come first in every layer, as in an exported checkpoint."""
        return not any(isinstance(units, tuple) for layer in self.layers for units in (layer.heads, layer.ffn))

    def live(self, num_units: int, intermediate_size: int) -> tuple[LiveLayer, ...]:
        """Returns what each layer executes, dead work left out.

        An update of visual tokens is dead if no text of a later layer reads them. So the last layer that text reads
        needs visual keys and values, but neither the attention update nor the FFN. Later layers need nothing.
        """
        readable = [layer.read and layer.tokens > 0 and num_served(layer.heads, num_units) > 0 for layer in self.layers]
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
