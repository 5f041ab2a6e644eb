"""What things are pasted on: photographs and pictures of wallpaper packages, or textures where there are none."""

import io
import random
import re
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image

from data.pasted.archive import members
from data.pasted.packages import PACKAGES, PackageUnavailable, fetch

BACKGROUND_PACKAGES = {
    "plasma-workspace-wallpapers": r"usr/share/wallpapers/([^/]+)/contents/images/\d+x\d+\.(?:jpg|png)",
    "mate-backgrounds": r"usr/share/backgrounds/mate/nature/(.+)\.jpg",
    "lomiri-wallpapers-16.04": r"usr/share/backgrounds/(.+)\.jpg",
}
"""Name of each package -> its pictures. The first group is what sizes of one picture share."""
_SHOW_THINGS = (
    "Autumn", "EveningGlow", "FlyingKonqui", "Kite", "LadyBird", "Picture_0B_by_freespace", "Picture_1A_by_freespace",
    "Wine_by_Jakkub_Mede", "YellowFlower", "analogpattern_by_Peter_Nerlich", "free_by_Peter_Nerlich",
    "friends_by_Aitzol_Berasategi", "umang_by_Abhishek_Mudgal",
)  # fmt: skip
"""Pictures that show something with a name, so that no question could ask whether it is there."""
SHORT_SIDE = 480
"""Pixels of a kept picture's shorter side."""
_NUM_TEXTURES = 40


def read_backgrounds() -> tuple[dict[str, Image.Image], list[str]]:
    """Returns RGB pictures whose shorter side has SHORT_SIDE pixels, by name, and what is missing, a line each.

    Where no package can be had, they are textures.
    """
    found: dict[str, Image.Image] = {}
    missing = []
    for package, pattern in BACKGROUND_PACKAGES.items():
        try:
            found |= _pictures(members(fetch(PACKAGES[package]), pattern), pattern)
        except PackageUnavailable as error:
            missing.append(str(error))
    if not found:
        found = {f"texture-{number:02d}": texture(random.Random(number)) for number in range(_NUM_TEXTURES)}
    return dict(sorted(found.items())), missing


def _pictures(files: Iterable[tuple[str, bytes]], pattern: str) -> Mapping[str, Image.Image]:
    """Returns the largest size of each picture, which has the most bytes."""
    largest: dict[str, bytes] = {}
    for file, content in files:
        match = re.fullmatch(pattern, file)
        assert match is not None
        if match[1] not in _SHOW_THINGS and len(content) > len(largest.get(match[1], b"")):
            largest[match[1]] = content
    return {key: _scaled(Image.open(io.BytesIO(content))) for key, content in largest.items()}


def _scaled(image: Image.Image) -> Image.Image:
    image.draft("RGB", (2 * SHORT_SIDE, 2 * SHORT_SIDE))
    scale = SHORT_SIDE / min(image.size)
    width, height = (max(SHORT_SIDE, round(side * scale)) for side in image.size)
    return image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)


def texture(rng: random.Random) -> Image.Image:
    """Returns a picture of soft coloured spots and fine grain."""
    numbers = np.random.default_rng(rng.getrandbits(32))
    image = np.zeros((SHORT_SIDE, SHORT_SIDE, 3))
    for spots, strength in ((rng.randint(2, 5), 160), (rng.randint(8, 16), 50), (rng.randint(40, 120), 25)):
        layer = Image.fromarray(numbers.integers(0, 256, (spots, spots, 3), dtype=np.uint8))
        image += np.asarray(layer.resize(image.shape[:2], Image.Resampling.BICUBIC)) / 255 * strength
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))
