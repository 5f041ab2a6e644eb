"""A stock of tiny drawings, which needs no package."""

import random

from PIL import Image, ImageDraw

from data.pasted.parts.backgrounds import texture
from data.pasted.parts.names import Name
from data.pasted.parts.stock import Stock

NAMES = [
    Name(text, f"{0x1F400 + number:x}", chr(0x1F400 + number), subgroup, category)
    for number, (text, subgroup, category) in enumerate(
        [
            ("dog", "mammal", "animal"), ("lion", "mammal", "animal"), ("bear", "mammal", "animal"),
            ("polar bear", "mammal", "animal"), ("bat", "mammal", "animal"), ("eagle", "bird", "animal"),
            ("penguin", "bird", "animal"), ("shark", "marine", "animal"), ("whale", "marine", "animal"),
            ("bee", "bug", "animal"), ("spider", "bug", "animal"), ("apple", "fruit", "food"),
            ("banana", "fruit", "food"), ("grapes", "fruit", "food"), ("carrot", "vegetable", "food"),
            ("onion", "vegetable", "food"), ("car", "ground", "vehicle"), ("bus", "ground", "vehicle"),
            ("canoe", "water", "vehicle"), ("guitar", "music", "instrument"), ("trumpet", "music", "instrument"),
            ("top hat", "clothing", "piece of clothing"), ("shoe", "clothing", "piece of clothing"),
            ("umbrella", "weather", None), ("key", "lock", None),
        ]
    )
]  # fmt: skip

TEXTURES = {f"texture-{number}": texture(random.Random(number)).resize((200, 200)) for number in range(6)}


def tiny_stock(seed: int = 0) -> Stock:
    """Every name in three styles, coloured shapes of different proportions, on six textures."""
    rng = random.Random(seed)
    drawings: dict[str, dict[str, tuple[Image.Image, ...]]] = {
        style: {name.text: (_drawing(rng),) for name in NAMES} for style in ("fluent", "twemoji", "noto")
    }
    drawings["photo"] = {name.text: (_drawing(rng), _drawing(rng)) for name in NAMES[:5]}
    backgrounds = {name: image.copy() for name, image in TEXTURES.items()}
    columns = [tuple(float(rng.randint(1, 100)) for _ in range(30)) for _ in range(2)]
    return Stock(NAMES, drawings, backgrounds, columns)


def _drawing(rng: random.Random) -> Image.Image:
    image = Image.new("RGBA", (rng.randint(10, 32), rng.randint(10, 32)))
    color = tuple(rng.choice((0, 255)) for _ in range(3))
    ImageDraw.Draw(image).ellipse((0, 0, image.width - 1, image.height - 1), fill=(*color, 255), outline="black")
    return image
