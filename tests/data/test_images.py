"""Pictures of bad files: each kind is refused with its own message, before harm is done."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from data.images import open_image, process_images, read_image_size, tokens_at
from data.sample import EmbeddedFile
from data.sources.files import find_file
from modeling.user_error import UserError
from tests.families.qwen2_vl import QWEN2_VL
from tests.tiny_processor import tiny_processor


@pytest.fixture
def root(tmp_path):
    """A root with one picture, beside a secret picture outside it."""
    root = tmp_path / "pictures"
    (root / "deep").mkdir(parents=True)
    Image.effect_noise((40, 30), 50).convert("RGB").save(root / "deep" / "good.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (tmp_path / "pictures2").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "pictures2" / "near.png")
    return root


def test_finds_a_picture_under_its_root(root):
    assert find_file(root, "deep/good.png", "image") == root / "deep" / "good.png"
    assert find_file(root, "deep/../deep/good.png", "image") == root / "deep" / "good.png"


@pytest.mark.parametrize("name", ["../secret.png", "deep/../../secret.png", "../pictures2/near.png"])
def test_relative_path_outside_the_root(root, name):
    with pytest.raises(UserError, match=r"lies outside its root .*pictures'"):
        find_file(root, name, "image")


def test_absolute_path_outside_the_root(root, tmp_path):
    with pytest.raises(UserError, match="lies outside its root"):
        find_file(root, str(tmp_path / "secret.png"), "image")


def test_symbolic_links_out_of_the_root(root, tmp_path):
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "folder").symlink_to(tmp_path)
    for name in ("link.png", "folder/secret.png"):
        with pytest.raises(UserError, match="lies outside its root"):
            find_file(root, name, "image")


def test_symbolic_links_within_the_root_and_of_the_root_are_fine(root, tmp_path):
    (root / "link.png").symlink_to(root / "deep" / "good.png")
    (tmp_path / "alias").symlink_to(root)
    assert find_file(tmp_path / "alias", "link.png", "image") == root / "deep" / "good.png"


@pytest.mark.parametrize("name", ["missing.png", "deep", ""])
def test_missing_picture(root, name):
    with pytest.raises(UserError, match="is not a file under"):
        find_file(root, name, "image")


def test_size_is_height_and_width(root):
    assert read_image_size(root / "deep" / "good.png") == (30, 40)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_mode_becomes_rgb(root, mode):
    path = root / ("picture.tif" if mode == "CMYK" else "picture.png")
    Image.new("RGB", (5, 4), (255, 0, 0)).convert(mode).save(path)
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (5, 4))


def png_header(width, height):
    """The first bytes of a PNG file of this size: signature, header chunk, the beginning of its data."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 9))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@pytest.mark.parametrize("read", [open_image, read_image_size])
def test_gigantic_picture_is_refused_by_its_header(root, read):
    (root / "large.png").write_bytes(png_header(8001, 8000))
    with pytest.raises(UserError, match=r"too large \(8001 x 8000 pixels\); at most 64000000 pixels"):
        read(root / "large.png")
    (root / "bomb.png").write_bytes(png_header(100_000, 100_000))  # here PIL itself stops
    with pytest.raises(UserError, match=r"bomb.png' is too large .* at most 64000000 pixels"):
        read(root / "bomb.png")


def test_the_pixel_limit_is_inclusive_and_configurable(root):
    assert open_image(root / "deep" / "good.png", max_pixels=1200).size == (40, 30)
    with pytest.raises(UserError, match=r"\(40 x 30 pixels\); at most 1199 pixels"):
        open_image(root / "deep" / "good.png", max_pixels=1199)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif"])
def test_truncated_picture(root, suffix):
    whole, cut = root / f"whole.{suffix}", root / f"cut.{suffix}"
    Image.effect_noise((64, 64), 90).convert("RGB").save(whole)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    assert open_image(whole).size == (64, 64)
    with pytest.raises(UserError, match=rf"cut.{suffix}' (is truncated or corrupt|cannot be read|is not a picture)"):
        open_image(cut)


def test_corrupt_chunk(root):
    content = bytearray((root / "deep" / "good.png").read_bytes())
    content[content.index(b"IDAT") + 100] ^= 0xFF
    (root / "corrupt.png").write_bytes(content)
    with pytest.raises(UserError, match="corrupt.png' is truncated or corrupt"):
        open_image(root / "corrupt.png")


def test_a_file_on_which_pil_raises_other_errors(root):
    """PIL's parsers raise ValueError on some broken files."""
    path = root / "broken.ppm"
    Image.effect_noise((40, 30), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes().replace(b"255", b"25k"))
    with pytest.raises(UserError, match="broken.ppm' (is truncated or corrupt|cannot be read)"):
        open_image(path)


@pytest.mark.parametrize("error", [ValueError, RuntimeError])
@pytest.mark.parametrize("read", [open_image, read_image_size])
def test_a_picture_whose_opening_raises(root, monkeypatch, read, error):
    def fail(*arguments, **options):
        raise error("bad metadata")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(UserError, match=r"good.png' cannot be read \(bad metadata\)"):
        read(root / "deep" / "good.png")


def test_a_picture_that_the_image_processor_refuses(root):
    path = root / "line.png"
    Image.new("RGB", (4, 4)).save(path)
    processor = QWEN2_VL.processor()

    def refuse(*arguments, **options):
        raise ValueError("too small")

    processor.image_processor.preprocess = processor.image_processor.__call__ = refuse
    complaint = "a picture of 4 x 4 pixels is refused by Qwen2VLImageProcessorPil .*too small"
    with pytest.raises(UserError, match=complaint):
        process_images([path], processor)


@pytest.mark.parametrize("read", [open_image, read_image_size])
def test_a_line_is_refused_by_its_header(root, read):
    """Scaled to 336 pixels on its shorter side, as LLaVA does, one of 8000 x 4 pixels takes gigabytes."""
    Image.new("RGB", (8000, 4)).save(root / "line.png")
    with pytest.raises(
        UserError, match=r"line.png' is too long \(8000 x 4 pixels\); at most 200 times as long as wide"
    ):
        read(root / "line.png")
    Image.new("RGB", (800, 4)).save(root / "line.png")
    read(root / "line.png")


def test_formats_that_are_not_read(root):
    """PIL would start Ghostscript on EPS."""
    for suffix in ("eps", "dds", "ico", "icns", "im", "tga", "pdf"):
        path = root / f"drawing.{suffix}"
        Image.new("RGB", (16, 16)).save(path)
        for picture in (path, embedded(path)):
            with pytest.raises(UserError, match=rf"drawing.{suffix}' is not a picture of a format that is read \(BMP"):
                open_image(picture)


@pytest.mark.parametrize("content", [b"", b"no picture at all"])
def test_not_a_picture(root, content):
    (root / "text.png").write_bytes(content)
    with pytest.raises(UserError, match="text.png' is not a picture of a format that is read"):
        open_image(root / "text.png")


def test_placeholders_come_from_the_processor(root):
    path = root / "deep" / "good.png"
    for image_size, patch_size, expected in ((24, 8, 9), (28, 7, 16)):
        processor = tiny_processor(image_size=image_size, patch_size=patch_size)
        pictures, tokens = process_images([path, path], processor)
        assert [of_image.tolist() for of_image in tokens] == [[processor.image_token_id] * expected] * 2
        assert pictures["pixel_values"].shape == (2, 3, image_size, image_size)
        assert torch.equal(tokens_at((30, 40), processor), tokens[0])


def test_class_token_is_left_out_as_the_processor_says(root):
    processor = tiny_processor()
    processor.num_additional_image_tokens, processor.vision_feature_select_strategy = 1, "full"
    assert process_images([root / "deep" / "good.png"], processor)[1][0].shape == (10,)
    processor.vision_feature_select_strategy = "default"
    assert process_images([root / "deep" / "good.png"], processor)[1][0].shape == (9,)


def test_no_pictures():
    assert process_images([], tiny_processor()) == ({}, [])


def test_pixels_are_those_of_the_picture(root):
    red, blue = root / "red.png", root / "blue.png"
    Image.new("RGB", (24, 24), (255, 0, 0)).save(red)
    Image.new("RGB", (24, 24), (0, 0, 255)).save(blue)
    pixel_values = process_images([red, blue], tiny_processor())[0]["pixel_values"]  # [2, 3, 24, 24]
    assert torch.equal(pixel_values.mean((2, 3)).argmax(1), torch.tensor([0, 2]))


def embedded(path):
    return EmbeddedFile(path.read_bytes(), path.name)


def test_a_picture_within_its_row_is_the_one_in_a_file(root):
    path = root / "deep" / "good.png"
    assert np.array_equal(np.asarray(open_image(embedded(path))), np.asarray(open_image(path)))
    assert read_image_size(embedded(path)) == (30, 40)
    of_row, of_file = (process_images([picture], tiny_processor()) for picture in (embedded(path), path))
    assert torch.equal(of_row[0]["pixel_values"], of_file[0]["pixel_values"]) and torch.equal(
        of_row[1][0], of_file[1][0]
    )


def test_faults_of_a_picture_within_its_row(root):
    whole = (root / "deep" / "good.png").read_bytes()
    Image.new("RGB", (8000, 4)).save(root / "line.png")
    Image.fromarray(np.ones((4, 4), np.float32)).save(root / "field.tif")
    faults = {
        b"": "image 'row.png' is not a picture of a format that is read",
        b"no picture": "image 'row.png' is not a picture of a format that is read",
        whole[:-200]: "image 'row.png' is truncated or corrupt",
        png_header(8001, 8000): r"image 'row.png' is too large \(8001 x 8000 pixels\); at most 64000000 pixels",
        (root / "line.png").read_bytes(): r"image 'row.png' is too long \(8000 x 4 pixels\); at most 200 times",
        (root / "field.tif").read_bytes(): "image 'row.png' has no obvious colours: its pixels are of mode F",
    }
    for data, message in faults.items():
        with pytest.raises(UserError, match=message) as fault:
            open_image(EmbeddedFile(data, "row.png"))
        assert "\n" not in str(fault.value)
