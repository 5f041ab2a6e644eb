"""The scenes of the embedded world, and how they are drawn.

A picture of 96 x 96 pixels is a 3 x 3 grid of cells. One to four things stand in cells of their own. No two of them
have the same colour and shape. A sign in another cell shows a three-letter word or a number of two digits.

The world has four parts: train, validation, calibration and test. A hash of its description decides to which part a
scene belongs, so no scene of one part ever occurs in another.
"""

import hashlib
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

IMAGE_SIZE = 96
CELL_SIZE = 32
COLORS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 90, 220),
    "yellow": (235, 205, 0),
    "purple": (140, 60, 190),
    "orange": (255, 130, 20),
}
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring")
SIZES = {"small": 8, "large": 12}  # half the width, in pixels
WORDS = ("cat", "dog", "sun", "cup", "hat", "map", "key", "box", "pen", "fox", "jar", "bed")
PLACES = tuple(f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "center", "right"))

_PARTS = {"test": range(0, 10), "validation": range(10, 15), "calibration": range(15, 20), "train": range(20, 100)}
BACKGROUND = (236, 236, 232)
_INK = (20, 20, 20)
_SIGN_HEIGHT = 18
_MAX_SHIFT = 1  # pixels by which a thing may stand off the middle of its cell


@dataclass(frozen=True)
class Thing:
    """One coloured shape.

    Attributes:
        cell: its cell, from 0 to 8 in reading order.
        color: a key of COLORS.
        shape: one of SHAPES.
        size: a key of SIZES.
        center: (x, y) in pixels. It is no part of the description.
    """

    cell: int
    color: str
    shape: str
    size: str
    center: tuple[int, int]

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def row(self) -> int:
        return self.cell // 3

    @property
    def column(self) -> int:
        return self.cell % 3


@dataclass(frozen=True)
class Sign:
    """The written word or number, in a cell of its own, from 0 to 8 in reading order."""

    cell: int
    text: str

    @property
    def kind(self) -> str:
        return "number" if self.text.isdigit() else "word"


@dataclass(frozen=True)
class Scene:
    """What a picture shows: its things, in reading order, and the sign."""

    things: tuple[Thing, ...]
    sign: Sign

    @property
    def description(self) -> str:
        """The scene in words, in reading order. It is also the answer to the request for a caption."""
        clauses = {thing.cell: f"{PLACES[thing.cell]}: {thing.size} {thing.name}" for thing in self.things}
        clauses[self.sign.cell] = f"{PLACES[self.sign.cell]}: {self.sign.kind} {self.sign.text}"
        return ", ".join(clauses[cell] for cell in sorted(clauses))

    @property
    def part(self) -> str:
        """The only part of the world that may show this scene."""
        bucket = int.from_bytes(hashlib.sha256(self.description.encode()).digest()[:4], "big") % 100
        return next(part for part, buckets in _PARTS.items() if bucket in buckets)


def sample_scene(rng: random.Random, part: str, min_things: int, max_things: int) -> Scene:
    """Returns a random scene of `part`.

    Half the scenes have few colours and shapes, so that things are easily confused.

    Args:
        rng: the only source of randomness.
        part: one of train, validation, calibration, test.
        min_things: the smallest number of things.
        max_things: the largest number of things.
    """
    while True:
        crowded = rng.random() < 0.5
        colors = rng.sample(list(COLORS), 3) if crowded else list(COLORS)
        shapes = rng.sample(SHAPES, 3) if crowded else SHAPES
        pairs = [(color, shape) for color in colors for shape in shapes]
        count = rng.randint(min_things, max_things)
        sign_cell, *cells = rng.sample(range(9), count + 1)
        things = []
        for cell, (color, shape) in zip(sorted(cells), rng.sample(pairs, count), strict=True):
            x, y = (
                CELL_SIZE * index + CELL_SIZE // 2 + rng.randint(-_MAX_SHIFT, _MAX_SHIFT)
                for index in (cell % 3, cell // 3)
            )
            things.append(Thing(cell, color, shape, rng.choice(list(SIZES)), (x, y)))
        text = rng.choice(WORDS) if rng.random() < 0.5 else str(rng.randint(10, 99))
        scene = Scene(tuple(things), Sign(sign_cell, text))
        if scene.part == part:
            return scene


def draw_scene(scene: Scene) -> Image.Image:
    """Draws a scene as an RGB picture of IMAGE_SIZE x IMAGE_SIZE pixels. The same scene gives the same pixels."""
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for thing in scene.things:
        _draw_thing(draw, thing)
    _draw_sign(image, scene.sign)
    return image


def _draw_thing(draw: ImageDraw.ImageDraw, thing: Thing) -> None:
    x, y = thing.center
    r = SIZES[thing.size]
    color = COLORS[thing.color]
    if thing.shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=color)
    elif thing.shape == "ring":
        draw.ellipse((x - r, y - r, x + r, y + r), outline=color, width=r // 2)
    elif thing.shape == "square":
        draw.rectangle((x - r + 1, y - r + 1, x + r - 1, y + r - 1), fill=color)
    elif thing.shape == "triangle":
        draw.polygon(((x, y - r), (x - r, y + r), (x + r, y + r)), fill=color)
    elif thing.shape == "diamond":
        draw.polygon(((x, y - r), (x + r, y), (x, y + r), (x - r, y)), fill=color)
    else:
        assert thing.shape == "cross", thing.shape
        draw.rectangle((x - r, y - r // 3, x + r, y + r // 3), fill=color)
        draw.rectangle((x - r // 3, y - r, x + r // 3, y + r), fill=color)


def _draw_sign(image: Image.Image, sign: Sign) -> None:
    """Writes the sign in capitals, enlarged from Pillow's own bitmap font. No font file decides how it looks."""
    font = ImageFont.load_default_imagefont()
    left, top, right, bottom = font.getbbox(sign.text.upper())
    ink = Image.new("L", (right - left, bottom - top), 0)
    ImageDraw.Draw(ink).text((-left, -top), sign.text.upper(), fill=255, font=font)
    ink = ink.resize((round(ink.width * _SIGN_HEIGHT / ink.height), _SIGN_HEIGHT), Image.Resampling.BILINEAR)
    x = CELL_SIZE * (sign.cell % 3) + (CELL_SIZE - ink.width) // 2
    y = CELL_SIZE * (sign.cell // 3) + (CELL_SIZE - ink.height) // 2
    image.paste(_INK, (x, y), ink)
