"""The visual plan: what each decoder layer does for visual tokens, and for whom.

Every method that makes visual tokens cheap is a value of `VisualPlan`: which visual tokens are carried
(`tokens`, `rank`), which take the attention and the FFN update (`attend`, `ffn`), who may read them (`read`),
how wide that work is (`heads`, `ffn`) and how far a visual token looks (`radius`, `bidirectional`).
A layer's defaults are the dense model. Plans are immutable values, stored as JSON in a checkpoint's config.
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from .layer_plan import ATTENTION_RANKINGS, RANKINGS, LayerPlan, Rank, num_served, refuse_unknown_keys
from .user_error import UserError
from .whole_file import whole_file


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
        UserError: `tokens` grows with depth, or survivors would have to be ranked by attention that is not computed.
    """

    layers: tuple[LayerPlan, ...]
    version: int = 1

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(self.layers))
        if self.version != 1:
            raise UserError(f"visual plan: got version {self.version!r}, allowed: 1")
        if not self.layers:
            raise UserError("visual plan: got no layers, allowed: one entry per decoder layer")
        before = LayerPlan()
        for index, layer in enumerate(self.layers):
            if layer.tokens > before.tokens:
                raise UserError(
                    f"visual plan: layer {index}: tokens: got {layer.tokens} after {before.tokens} in layer {index - 1}, "
                    "allowed: never more than the layer before"
                )
            if 0 < layer.tokens < before.tokens and layer.rank.by_attention:
                self._check_rank(index, layer, before)
            before = layer

    @staticmethod
    def _check_rank(index: int, layer: LayerPlan, before: LayerPlan) -> None:
        """Raises UserError where tokens fall by an attention that the layer before does not compute."""
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
                f"{falls}, but {wanting} in layer {index - 1}; allowed: rank after a layer that {allowed} with at least one head"
            )

    def __len__(self) -> int:
        return len(self.layers)

    @classmethod
    def dense(cls, num_layers: int) -> "VisualPlan":
        return cls(layers=(LayerPlan(),) * num_layers)

    @classmethod
    def from_dict(cls, given: dict) -> "VisualPlan":
        """Reads the JSON form. Raises UserError naming the layer and the field."""
        refuse_unknown_keys(given, cls, "visual plan")
        if not isinstance(given.get("layers"), (list, tuple)):
            raise UserError(
                f"visual plan: layers: got {given.get('layers')!r}, allowed: a list with one object per layer"
            )
        layers = []
        for index, layer in enumerate(given["layers"]):
            try:
                layers.append(LayerPlan.from_dict(layer, before=layers[-1] if layers else LayerPlan()))
            except UserError as error:
                raise UserError(f"visual plan: layer {index}: {error}") from None
        return cls(layers=tuple(layers), version=given.get("version", 1))

    def to_dict(self) -> dict:
        above = (LayerPlan(), *self.layers)
        return {
            "version": self.version,
            "layers": [layer.to_dict(before) for layer, before in zip(self.layers, above, strict=False)],
        }

    @classmethod
    def load(cls, path: str | os.PathLike) -> "VisualPlan":
        """Reads a plan file. Raises UserError when it is missing, not JSON, or not a plan."""
        try:
            given = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: no such plan file") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a JSON file ({error})") from None
        try:
            return cls.from_dict(given)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def save(self, path: str | os.PathLike) -> None:
        """Writes the plan file whole or not at all."""
        with whole_file(path) as file:
            file.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

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
        """Raises UserError when the plan does not fit a decoder of these sizes."""
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
