"""What pictures of the world "pasted things" show, and where.

A picture has S x S pixels and is seen as a grid of 3 x 3 cells, whose names are PLACES. Either a few things stand on a
background, each with its middle well inside a cell of its own, and sometimes a sign with a word or a number. Or the
picture is a bar chart: each bar stands on a drawing of the thing that it counts.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

from data.pasted.parts.names import Name

PLACES = tuple(f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "center", "right"))
Axis = Literal["none", "backgrounds", "style", "combinations"]
"""What of a picture is never trained: nothing, its background, its things' style, or a pair of its things."""
_RESERVED = 10
"""One pair of names in so many is never trained."""


class Box(NamedTuple):
    """A rectangle of whole pixels; x and y are those of its upper left corner."""

    x: int
    y: int
    width: int
    height: int

    @property
    def middle(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2

    @property
    def area(self) -> int:
        return self.width * self.height

    def shared(self, other: "Box") -> int:
        """Returns the area that two boxes share."""
        width = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        height = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        return max(width, 0) * max(height, 0)


@dataclass(frozen=True)
class Thing:
    """One pasted thing.

    Attributes:
        name: what it is.
        style: the style of its drawing.
        drawing: which of its drawings in that style it is.
        box: what it covers.
    """

    name: Name
    style: str
    drawing: int
    box: Box


@dataclass(frozen=True)
class Sign:
    """A written word or number, in dark letters on a light panel or the other way round.

    Attributes:
        text: what is written, in lower case; it is drawn in capitals.
        font: name of its font.
        height: of its capitals, in pixels.
        dark: whether the panel is dark.
        box: what the panel covers.
    """

    text: str
    font: str
    height: int
    dark: bool
    box: Box

    @property
    def kind(self) -> str:
        return "number" if self.text.isdigit() else "word"


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        size: S, its width and height in pixels.
        background: name of the picture behind all.
        crop: the square of it that is seen.
        things: in reading order of their cells; the things below the bars in a chart.
        sign: the sign, if there is one.
        bars: of a chart, one above each thing. Empty in other pictures.
        color: of the bars.
    """

    size: int
    background: str
    crop: Box
    things: tuple[Thing, ...]
    sign: Sign | None = None
    bars: tuple[Box, ...] = ()
    color: tuple[int, int, int] = (0, 0, 0)

    def place(self, box: Box) -> str:
        """Returns the name of the cell in which the middle of a box is."""
        return PLACES[cell_of(box, self.size)]


def cell_of(box: Box, size: int) -> int:
    """Returns the cell, from 0 to 8 in reading order, in which the middle of a box is."""
    x, y = box.middle
    return 3 * int(3 * y / size) + int(3 * x / size)


def is_reserved(a: Name, b: Name) -> bool:
    """Returns whether two names are never together in a picture that is trained on."""
    return a != b and _is_reserved(*sorted((a.text, b.text)))


@cache
def _is_reserved(a: str, b: str) -> bool:
    return int.from_bytes(hashlib.sha256(f"{a}|{b}".encode()).digest()[:4], "big") % _RESERVED == 0


def choose_names(rng: random.Random, names: Sequence[Name], count: int, axis: Axis) -> list[Name]:
    """Returns different names that fit into one picture: none may be said of another's thing.

    Half the time, two of them are of one subgroup. With `combinations`, at least two are a reserved pair; otherwise
    none are.
    """
    while True:
        first, *others = rng.sample(names, len(names))
        if rng.random() < 0.5:
            others.sort(key=lambda name: name.subgroup != first.subgroup)
            others[2:] = rng.sample(others[2:], len(others) - 2)
        if axis == "combinations":
            others.sort(key=lambda name: not is_reserved(name, first))
            others[1:] = rng.sample(others[1:], len(others) - 1)
        chosen = [first]
        for name in others:
            if len(chosen) < count and not any(_clash(name, other, axis) for other in chosen):
                chosen.append(name)
        held_out = any(is_reserved(a, b) for a in chosen for b in chosen)
        if len(chosen) == count and (held_out or axis != "combinations"):
            rng.shuffle(chosen)
            return chosen


def _clash(a: Name, b: Name, axis: Axis) -> bool:
    """Returns whether two names may not be in one picture."""
    return a.is_like(b) or (axis != "combinations" and is_reserved(a, b))
