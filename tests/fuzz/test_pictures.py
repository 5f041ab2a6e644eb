"""Picture files that are broken on purpose, of all formats that PIL writes: each is a picture, or refused in a line."""

import io
import random
import struct
from typing import NamedTuple

import pytest
from PIL import Image

from data.images import FORMATS, open_image, process_images, read_image_size
from data.sample import EmbeddedFile
from tests.fuzz.guards import in_children, nothing_done, refused
from tests.tiny_processor import tiny_processor

CASES, SAMPLE = 1_500, 40
MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F", "HSV", "LAB")
SIDES = ((1, 1), (7, 5), (40, 30), (300, 2))
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


class Case(NamedTuple):
    form: str
    """The format that PIL was asked for."""
    change: str
    data: bytes

    def __repr__(self) -> str:
        return f"{self.form}, {self.change}, {len(self.data)} bytes: {self.data[:60]!r}"


def picture(form: str, rng: random.Random) -> bytes:
    """A file of a format. Not every format takes every mode: the first that it takes is written."""
    for mode in rng.sample(MODES, len(MODES)):
        file = io.BytesIO()
        options = {}
        if rng.random() < 0.3:
            exif = Image.Exif()
            exif[0x0112] = rng.choice((0, 1, 3, 5, 6, 8, 9, 65535, "x", (1, 2), 1.5))
            options["exif"] = exif
        if rng.random() < 0.2:
            options |= {"save_all": True, "append_images": [Image.new("RGB", (9, 9), "red")]}
        try:
            image = Image.effect_noise(rng.choice(SIDES), 60).convert("RGB").convert(mode)
            image.save(file, form, **options)
        except Exception:  # PIL does not write this mode, or these options
            continue
        return file.getvalue()
    return b""


def changed(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """What is done to a file, in a word, and the file then."""
    content = bytearray(data or b"\0")
    header = min(len(content), 120)
    kind = rng.choice(("none", "cut", "byte", "bytes", "size", "grown", "swapped", "repeated", "zeros", "text", "end"))
    match kind:
        case "cut":
            del content[rng.randrange(len(content)) :]
        case "byte":
            content[rng.randrange(header)] = rng.randrange(256)
        case "bytes":
            for _ in range(rng.randint(2, 30)):
                content[rng.randrange(len(content))] = rng.randrange(256)
        case "size":
            place, width = rng.randrange(header), rng.choice((2, 4))
            value = rng.choice(EXTREMES) & (2 ** (8 * width) - 1)
            content[place : place + width] = struct.pack(rng.choice("<>") + {2: "H", 4: "I"}[width], value)
        case "grown":
            place = rng.randrange(len(content))
            content[place:place] = rng.randbytes(rng.choice((1, 10, 1000)))
        case "swapped":
            a, b = (rng.randrange(len(content)) for _ in range(2))
            content[a], content[b] = content[b], content[a]
        case "repeated":
            content += content[rng.randrange(len(content)) :]
        case "zeros":
            place = rng.randrange(len(content))
            content[place : place + 40] = bytes(len(content[place : place + 40]))
        case "text":
            content = bytearray(content.replace(b"0", rng.choice((b"9" * 20, b"-", b"x"))))
        case "end":
            content += rng.randbytes(200)
    return kind, bytes(content)


def cases(count: int) -> list[Case]:
    Image.init()
    forms = sorted(Image.SAVE)
    # Of the formats that are read, more files.
    forms += [form for form in (*FORMATS, "MPO") if form in forms] * 4
    found = []
    for number in range(count):
        rng = random.Random(f"picture {number}")
        form = forms[number % len(forms)]
        found.append(Case(form, *changed(picture(form, rng), rng)))
    return found


def check(case: Case) -> str | None:
    """The line by which a picture is refused; None if it is one. Both ways to look at it agree on its size."""
    file = EmbeddedFile(case.data, "a.png")
    with nothing_done():
        by_header = refused(lambda: read_image_size(file))
        decoded = refused(lambda: open_image(file))
        if decoded is None:
            image = open_image(file)
            assert by_header is None and read_image_size(file) == (image.height, image.width)
            assert image.mode == "RGB"
            refused(lambda: process_images([file], PROCESSOR))
        else:
            assert by_header is None or by_header == decoded
        if case.change == "none" and form_of(case.data) in (*FORMATS, "MPO"):
            assert decoded is None or "no obvious colours" in decoded, decoded
        if decoded is None:
            assert form_of(case.data) in (*FORMATS, "MPO")
    return decoded


def form_of(data: bytes) -> str | None:
    """The format that PIL takes a file for."""
    try:
        return Image.open(io.BytesIO(data)).format
    except Exception:  # whatever a parser raises
        return None


PROCESSOR = tiny_processor()


@pytest.mark.fuzz
def test_pictures():
    found = in_children(cases(CASES), check)
    assert len(found) == CASES
    accepted = sum(line is None for line in found)
    assert CASES / 10 < accepted < CASES * 9 / 10, "some are pictures and some are not"


def test_a_sample_of_pictures():
    """A few of each format that is read, and one of each that is not."""
    some = in_children(cases(SAMPLE), check)
    assert any(line is None for line in some) and any(line is not None for line in some)


def test_the_guards_notice(tmp_path):
    """Negative controls: what a case must not do is seen."""
    with pytest.raises(AssertionError, match="case 1: 1: status 0, .*RAISED KeyError"):
        in_children([0, 1, 2], lambda case: {0: None, 2: None}[case] if case != 1 else {}["a"])
    with pytest.raises(AssertionError, match="case 0: 0: status"):
        in_children([0], lambda case: __import__("os")._exit(3))
    with pytest.raises(AssertionError, match="is written"), nothing_done():
        (tmp_path / "outside").write_text("")
