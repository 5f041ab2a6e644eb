"""Pictures are seen as people see them: upright, transparent parts white, all shades of grey."""

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers.image_utils import load_image

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


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_stands_upright(tmp_path, orientation, suffix):
    path, image = tmp_path / f"photo.{suffix}", Image.fromarray(QUADRANTS)
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    image.save(path, exif=exif, lossless=True)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    assert np.array_equal(pixels(path), expected)
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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_phone_photograph_is_seen_as_transformers_shows_it(tmp_path, orientation):
    """`load_image` is how pictures are read where a checkpoint is served."""
    image = Image.fromarray(QUADRANTS.repeat(16, 0).repeat(16, 1))
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    image.save(tmp_path / "phone.jpg", exif=exif, quality=95)
    assert np.array_equal(pixels(tmp_path / "phone.jpg"), np.asarray(load_image(str(tmp_path / "phone.jpg"))))


def test_a_transparent_colour_of_a_palette_is_white(tmp_path):
    """In PNG a palette has an opacity for each colour, in GIF one colour is transparent."""
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    palette.paste(1, (0, 0, 4, 8))
    for name, opacity in {"one.gif": 0, "one.png": 0, "half.png": bytes([0, 128, 255])}.items():
        palette.save(tmp_path / name, transparency=opacity)
    for name in ("one.gif", "one.png"):
        seen = pixels(tmp_path / name)
        assert (seen[:, :4] == (255, 0, 0)).all() and (seen[:, 4:] == 255).all()
    seen = pixels(tmp_path / "half.png")
    assert (seen[:, :4] == (255, 127, 127)).all() and (seen[:, 4:] == 255).all()


@pytest.mark.parametrize("lossless", [True, False])
def test_webp_is_read(tmp_path, lossless):
    drawing = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    drawing.paste((200, 30, 30, 255), (0, 0, 16, 32))
    drawing.save(tmp_path / "drawing.webp", lossless=lossless, exact=True)
    seen = pixels(tmp_path / "drawing.webp").astype(int)
    assert np.abs(seen[:, 4:12] - (200, 30, 30)).max() <= 5 and np.abs(seen[:, 20:28] - 255).max() <= 5


def test_cmyk_jpeg_keeps_its_colours(tmp_path):
    Image.fromarray(QUADRANTS.repeat(16, 0).repeat(16, 1)).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    seen = pixels(tmp_path / "print.jpg").astype(int)[8::16, 8::16]
    assert np.abs(seen - QUADRANTS[:, :]).max() <= 10


def test_sixteen_bits_are_not_cut_off(tmp_path):
    """PIL's own conversion to RGB leaves nearly all of a ramp white."""
    ramp = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert len(np.unique(pixels(tmp_path / "ramp.png"))) == 256
