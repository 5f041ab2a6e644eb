"""Composes a picture: what is in it, where, and its pixels.

Everything is drawn at random again until nothing covers something else more than a little, and every thing stands out
from its background.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from data.pasted.parts.names import Name
from data.pasted.parts.stock import FONTS, Stock, font
from data.pasted.parts.words import WORDS
from data.pasted.scenes import Axis, Box, Scene, Sign, Thing, cell_of, choose_names
from data.pasted.settings import PictureSettings

MOST_SHARED = 0.05
"""Share of a smaller box that a larger one may cover."""
_INSET = 0.05  # of the picture, by which the middle of a box stays away from the next cell
_LEAST_CONTRAST = 30.0  # mean difference of a thing's channels (0 to 255) from what is behind it
_AGAINST_CLUTTER = 0.7  # so much more where that varies, for each of its standard deviation
_REPEATED = 0.4  # share of pictures in which one thing is there several times
_TRIES = 60
_PANELS = {False: ((250, 250, 245), (25, 25, 30)), True: ((25, 28, 36), (250, 250, 245))}
"""Whether a panel is dark: its colour, and that of what is on it."""
_BARS = ((214, 60, 50), (50, 120, 210), (60, 160, 80), (230, 150, 30), (140, 80, 180))


def compose(rng: random.Random, stock: Stock, axis: Axis, settings: PictureSettings) -> tuple[Scene, Image.Image]:
    """Returns a random scene and its picture, RGB of `settings.size` squared.

    Args:
        rng: the only source of randomness.
        stock: what pictures are made of.
        axis: what of the picture is never trained.
        settings: what pictures look like.
    """
    is_chart = rng.random() < settings.charts
    while True:
        scene = _chart(rng, stock, axis, settings) if is_chart else _things(rng, stock, axis, settings)
        if scene is None:
            continue
        image, stands_out = draw(scene, stock)
        if stands_out:
            return scene, image


def draw(scene: Scene, stock: Stock) -> tuple[Image.Image, bool]:
    """Returns the picture of a scene, and whether all things stand out from what is behind them."""
    size, stand_out = scene.size, True
    x, y, width, height = scene.crop
    image = stock.backgrounds[scene.background].crop((x, y, x + width, y + height))
    image = image.resize((size, size), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    if scene.bars:
        margin = size // 28
        pen.rectangle((margin, margin, size - margin - 1, size - margin - 1), fill=_PANELS[False][0])
        for bar in scene.bars:
            pen.rectangle((bar.x, bar.y, bar.x + bar.width - 1, bar.y + bar.height - 1), fill=scene.color)
    if scene.sign is not None:
        _draw_sign(pen, scene.sign)
    for thing in scene.things:
        drawing = stock.drawings[thing.style][thing.name.text][thing.drawing]
        drawing = drawing.resize(thing.box[2:], Image.Resampling.LANCZOS)
        x, y, width, height = thing.box
        behind = np.asarray(image.crop((x, y, x + width, y + height)), dtype=np.int16)
        pixels = np.asarray(drawing, dtype=np.int16)
        difference = np.abs(pixels[..., :3] - behind)[pixels[..., 3] > 128].mean()
        stand_out &= bool(difference >= _LEAST_CONTRAST + _AGAINST_CLUTTER * behind.std(axis=(0, 1)).mean())
        image.paste(drawing, (x, y), drawing)
    return image, stand_out


def _draw_sign(pen: ImageDraw.ImageDraw, sign: Sign) -> None:
    panel, ink = _PANELS[sign.dark]
    x, y, width, height = sign.box
    pen.rounded_rectangle((x, y, x + width - 1, y + height - 1), radius=4, fill=panel, outline=ink)
    pen.text(
        (x + width / 2, y + height / 2), sign.text.upper(), font=font(sign.font, sign.height), fill=ink, anchor="mm"
    )


def _things(rng: random.Random, stock: Stock, axis: Axis, settings: PictureSettings) -> Scene | None:
    """Returns a scene of things and perhaps a sign, or None if they find no room."""
    size = settings.size
    sign = _sign(rng, settings) if rng.random() < settings.signs else None
    most = settings.max_things if sign is None else min(settings.max_things, max(settings.min_things, 4))
    count = rng.randint(settings.min_things, most)
    copies = rng.randint(2, count) if count > 2 and rng.random() < _REPEATED else 1
    names = choose_names(rng, stock.names, max(count - copies + 1, 1 + (axis == "combinations")), axis)
    names += names[:1] * (count - len(names))
    drawn = [_drawing(rng, stock, name, axis) for name in names]
    room = (size / 3) * (1.7 if count < 4 else 1.3 if count == 4 else 1.05)
    largest = max(min(settings.largest, room), settings.smallest)
    # Things are rather small or rather large, so that it can be asked which is larger.
    shares = [rng.uniform(*rng.choice(((0.0, 0.3), (0.7, 1.0)))) for _ in drawn]
    sides = [settings.smallest + share * (largest - settings.smallest) for share in shares]
    for attempt in range(_TRIES):
        scale = 1 - 0.5 * attempt / _TRIES
        sizes = [
            _scaled(image.size, max(side * scale, settings.smallest))
            for (_, _, image), side in zip(drawn, sides, strict=True)
        ]
        placed = _place(rng, sizes if sign is None else [*sizes, sign.box[2:]], size)
        if placed is None:
            continue
        things = [
            Thing(name, style, number, box)
            for name, (style, number, _), box in zip(names, drawn, placed[:count], strict=True)
        ]
        background, crop = _background(rng, stock, axis, size)
        sign = None if sign is None else replace(sign, box=placed[-1])
        return Scene(size, background, crop, _in_order(things, size), sign)
    return None


def _sign(rng: random.Random, settings: PictureSettings) -> Sign:
    """Returns a sign that is not yet in its place."""
    while True:
        text = rng.choice(WORDS) if rng.random() < 0.5 else str(rng.randint(10, 999))
        face, height = rng.choice(FONTS), rng.randint(*settings.letters)
        left, _, right, _ = font(face, height).getbbox(text.upper())
        width = round(right - left) + height // 2
        if width <= 0.9 * settings.size:
            return Sign(text, face, height, rng.random() < 0.5, Box(0, 0, width, round(1.5 * height)))


def _chart(rng: random.Random, stock: Stock, axis: Axis, settings: PictureSettings) -> Scene | None:
    """Returns a bar chart of three or four numbers of a real column, or None if they are too close together."""
    size, count = settings.size, rng.randint(3, 4)
    column = rng.choice(stock.columns)
    values = rng.sample(column, count)
    ordered = sorted(values)
    if min(b - a for a, b in pairwise(ordered)) < 0.12 * ordered[-1]:
        return None
    names = choose_names(rng, stock.names, count, axis)
    margin = size // 28 + 2
    width = (size - 2 * margin) // count
    icon = min(width - 4, size // 3 - 8)
    top, bottom = margin + 4, size - margin - icon - 4
    things, bars = [], []
    for number, (name, value) in enumerate(zip(names, values, strict=True)):
        style, drawing, image = _drawing(rng, stock, name, axis)
        middle = margin + number * width + width // 2
        icon_width, icon_height = _scaled(image.size, icon)
        box = Box(middle - icon_width // 2, size - margin - (icon + icon_height) // 2, icon_width, icon_height)
        height = max(round((bottom - top) * value / ordered[-1]), 2)
        things.append(Thing(name, style, drawing, box))
        bars.append(Box(middle - width // 3, bottom - height, 2 * (width // 3), height))
    background, crop = _background(rng, stock, axis, size)
    return Scene(size, background, crop, tuple(things), None, tuple(bars), rng.choice(_BARS))


def _drawing(rng: random.Random, stock: Stock, name: Name, axis: Axis) -> tuple[str, int, Image.Image]:
    """Returns style, number and picture of a random drawing of a name."""
    style = rng.choice(stock.styles(name, axis))
    drawings = stock.drawings[style][name.text]
    number = rng.randrange(len(drawings))
    return style, number, drawings[number]


def _scaled(size: tuple[int, int], side: float) -> tuple[int, int]:
    """Returns (width, height) scaled so that the longer one is `side`."""
    scale = side / max(size)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def _place(rng: random.Random, sizes: Sequence[tuple[int, int]], size: int) -> list[Box] | None:
    """Returns a box of each size, whose middle is well inside a cell of its own, or None if they find no room."""
    cells = rng.sample(range(9), len(sizes))
    boxes: list[Box] = []
    for (width, height), cell in zip(sizes, cells, strict=True):
        x, y = _span(width, cell % 3, size), _span(height, cell // 3, size)
        if x[0] > x[1] or y[0] > y[1]:
            return None
        box = Box(round(rng.uniform(*x)), round(rng.uniform(*y)), width, height)
        if any(box.shared(other) > MOST_SHARED * min(box.area, other.area) for other in boxes):
            return None
        boxes.append(box)
    return boxes


def _span(side: int, index: int, size: int) -> tuple[float, float]:
    """Returns the least and the greatest start of a side whose middle is in a row or column of cells."""
    low = (index / 3 + _INSET) * size - side / 2
    high = ((index + 1) / 3 - _INSET) * size - side / 2
    return max(low, 2), min(high, size - 2 - side)


def _background(rng: random.Random, stock: Stock, axis: Axis, size: int) -> tuple[str, Box]:
    name = rng.choice(stock.background_names(axis))
    width, height = stock.backgrounds[name].size
    side = rng.randint(min(size, width, height), min(width, height))
    return name, Box(rng.randint(0, width - side), rng.randint(0, height - side), side, side)


def _in_order(things: Sequence[Thing], size: int) -> tuple[Thing, ...]:
    return tuple(sorted(things, key=lambda thing: cell_of(thing.box, size)))
