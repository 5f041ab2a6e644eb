"""Pictures are seen as people see them: upright, transparent parts white, all shades of grey."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from data.images import open_image, read_image_size
from data.pixels import ORIENTATION
from modeling.user_error import UserError

QUADRANTS = np.zeros((8, 12, 3), dtype=np.uint8)
QUADRANTS[:4, :6], QUADRANTS[:4, 6:], QUADRANTS[4:, :6] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
"""Red, green, blue and black: every turn and flip of it looks different."""


def pixels(path) -> np.ndarray:
    image = open_image(path)
    assert image.mode == "RGB" and read_image_size(path) == (image.height, image.width)
    return np.asarray(image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_stands_upright(tmp_path, orientation):
    image = Image.fromarray(QUADRANTS)
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    image.save(tmp_path / "photo.png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "photo.png")).convert("RGB"))
    assert np.array_equal(pixels(tmp_path / "photo.png"), expected)
    assert np.array_equal(expected, QUADRANTS) == (orientation == 1)


def test_a_photograph_whose_exif_is_broken_is_shown_as_it_lies(tmp_path):
    Image.fromarray(QUADRANTS).save(tmp_path / "photo.png", exif=b"Exif\x00\x00nonsense, no TIFF header")
    assert np.array_equal(pixels(tmp_path / "photo.png"), QUADRANTS)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparent_parts_are_white(tmp_path, mode):
    """Black lines on a transparent ground would be all black otherwise."""
    drawing = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    drawing.paste((0, 0, 0, 255), (2, 2, 4, 4))
    path = tmp_path / "drawing.png"
    if mode == "P":
        drawing.quantize(4).save(path)
    elif mode == "PA":
        drawing.save(tmp_path / "drawing.webp", lossless=True)
        path = tmp_path / "drawing.webp"
    else:
        drawing.convert(mode).save(path)
    seen = pixels(path)
    assert (seen[2:4, 2:4] == 0).all() and (seen[5:] == 255).all()


def test_a_colour_that_is_declared_transparent_is_white(tmp_path):
    Image.fromarray(QUADRANTS).save(tmp_path / "keyed.png", transparency=(0, 0, 0))
    seen = pixels(tmp_path / "keyed.png")
    assert (seen[:4] == QUADRANTS[:4]).all() and (seen[4:, 6:] == 255).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_of_grey_become_eight(tmp_path, suffix):
    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / f"ramp.{suffix}")
    assert np.array_equal(pixels(tmp_path / f"ramp.{suffix}")[..., 0], np.arange(256).reshape(16, 16))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animation_shows_its_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / f"film.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    assert (pixels(tmp_path / f"film.{suffix}") == (255, 0, 0)).all(axis=-1).mean() == 1


def test_cmyk_keeps_its_colours(tmp_path):
    Image.fromarray(QUADRANTS).convert("CMYK").save(tmp_path / "print.tif")
    assert np.abs(pixels(tmp_path / "print.tif").astype(int) - QUADRANTS).max() <= 2


@pytest.mark.parametrize("dtype, mode", [(np.float32, "F"), (np.int32, "I")])
def test_pixels_without_obvious_colours_are_refused(tmp_path, dtype, mode):
    Image.fromarray(np.ones((4, 4), dtype=dtype)).save(tmp_path / "field.tif")
    with pytest.raises(UserError, match=f"field.tif' has no obvious colours: its pixels are of mode {mode}, allowed"):
        open_image(tmp_path / "field.tif")
