"""Small videos for tests."""

import io
from collections.abc import Sequence

import numpy as np
import pytest


def film(brightness: Sequence[int], rate: int = 10, size: tuple[int, int] = (48, 64), container: str = "mp4") -> bytes:
    """A video of frames of these shades of grey, of `size` (height, width), whose upper quarter is white."""
    av = pytest.importorskip("av", reason="PyAV is not installed (pip install av)")
    file = io.BytesIO()
    with av.open(file, "w", format=container) as made:
        stream = made.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for value in brightness:
            pixels = np.full((*size, 3), value, np.uint8)
            pixels[: size[0] // 4] = 255
            made.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        made.mux(stream.encode())
    return file.getvalue()
