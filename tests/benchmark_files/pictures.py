"""Small pictures that differ in their colour."""

import io
from pathlib import Path

from PIL import Image


def png(color: str) -> bytes:
    """A picture file of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(file, "PNG")
    return file.getvalue()


def write_png(path: Path, color: str) -> None:
    """Writes such a file, whatever its ending, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(color))


def stored(color: str) -> dict:
    """Such a picture as a data set stores it."""
    return {"bytes": png(color), "path": None}
