"""All that pictures are made of, in memory: names, their drawings, backgrounds, fonts and columns of numbers."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageFont

from data.pasted.archive import members
from data.pasted.packages import PACKAGES, PackageUnavailable, fetch
from data.pasted.parts.backgrounds import read_backgrounds
from data.pasted.parts.drawings import HELD_OUT_STYLE, STYLE_PACKAGES, read_drawings
from data.pasted.parts.names import Name, read_names
from data.pasted.parts.tables import read_columns
from data.pasted.scenes import Axis

FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold")
"""Fonts of signs, which come with matplotlib."""
_HELD_OUT = 5
"""One background in so many is never trained."""
_NEEDED = ("fluent", HELD_OUT_STYLE)
"""Styles that come without Debian's packages. A name must have both."""


@dataclass(frozen=True)
class Stock:
    """What pictures are made of.

    Attributes:
        names: the names of things.
        drawings: style -> text of a name -> its drawings, RGBA. A style may lack names, but for HELD_OUT_STYLE.
        backgrounds: name -> RGB picture.
        columns: of real numbers, each of at least four.
        missing: what could not be had, a line each.
    """

    names: Sequence[Name]
    drawings: Mapping[str, Mapping[str, Sequence[Image.Image]]]
    backgrounds: Mapping[str, Image.Image]
    columns: Sequence[Sequence[float]]
    missing: Sequence[str] = ()

    def styles(self, name: Name, axis: Axis) -> list[str]:
        """Returns the styles that a thing may have."""
        if axis == "style":
            return [HELD_OUT_STYLE]
        return [style for style, of in self.drawings.items() if style != HELD_OUT_STYLE and name.text in of]

    def background_names(self, axis: Axis) -> list[str]:
        """Returns the names of the backgrounds that a picture may have: one in five is held out."""
        ordered = sorted(self.backgrounds, key=lambda name: hashlib.sha256(name.encode()).digest())
        count = max(len(ordered) // _HELD_OUT, 1)
        return ordered[:count] if axis == "backgrounds" else ordered[count:]


def read_stock() -> Stock:
    """Returns what the packages hold, which are fetched.

    Without Debian's packages there are fewer styles, and textures instead of photographs; `missing` says so.

    Raises:
        UserError: a package of PyPI or npm cannot be had, or one is damaged.
    """
    files = dict(members(fetch(PACKAGES["emojibase-data"]), r"package/en/(data|messages)\.json"))
    names = read_names(files["package/en/data.json"], files["package/en/messages.json"])
    drawings, missing = {}, []
    for style in STYLE_PACKAGES:
        try:
            drawings[style] = read_drawings(style, names)
        except PackageUnavailable as error:
            if style in _NEEDED:
                raise
            missing.append(str(error))
    names = [name for name in names if all(name.text in drawings[style] for style in _NEEDED)]
    backgrounds, without = read_backgrounds()
    return Stock(names, drawings, backgrounds, read_columns(), (*missing, *without))


@lru_cache(maxsize=64)
def font(name: str, capitals: int) -> ImageFont.FreeTypeFont:
    """Returns a font of FONTS whose capitals are so many pixels high."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    size = capitals
    while True:
        found = ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
        _, top, _, bottom = found.getbbox("H")
        if bottom - top >= capitals:
            return found
        size += 1
