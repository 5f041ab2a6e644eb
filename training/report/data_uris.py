"""Pictures and plots as data URIs, so that a page needs no other file."""

import base64
import io
from pathlib import Path

from matplotlib.figure import Figure

from data.images import open_image
from training.report.style import png

THUMBNAIL_PIXELS = 320
"""Longest side of a thumbnail."""


def figure_uri(figure: Figure) -> str:
    """Returns the figure as a PNG in a data URI."""
    return _png_uri(png(figure))


def thumbnail_uri(path: Path) -> str:
    """Returns a small copy of a picture as a PNG in a data URI.

    The picture is encoded anew, so that the page holds nothing else that its file may contain.

    Raises:
        UserError: the picture cannot be opened.
    """
    image = open_image(path)
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return _png_uri(buffer.getvalue())


def _png_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")
