"""The parts of pictures: names and drawings as packages hold them, and what stands in where a package is missing."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from data.pasted.packages import Package, PackageUnavailable
from data.pasted.parts import backgrounds, drawings, stock, tables
from data.pasted.parts.drawings import MOST_PIXELS, cropped, read_drawings
from data.pasted.parts.names import read_names
from data.pasted.parts.stock import font, read_stock
from data.pasted.parts.tables import TABLES

LABELS = {
    "elephant": ("1F418", "animal-mammal"), "dog face": ("1F436", "animal-mammal"),
    "automobile": ("1F697", "transport-ground"),
    "grapes": ("1F347", "food-fruit"), "full moon": ("1F315", "sky-weather"), "sun": ("2600-FE0F", "sky-weather"),
    "Tokyo tower": ("1F5FC", "place-building"), "polar bear": ("1F43B-200D-2744-FE0F", "animal-mammal"),
}  # fmt: skip
SUBGROUPS = sorted({subgroup for _, subgroup in LABELS.values()})


def emojibase() -> dict[str, bytes]:
    messages = {
        "groups": [{"key": "travel-places", "order": 5}, {"key": "flags", "order": 9}],
        "subgroups": [{"key": key, "order": number} for number, key in enumerate(SUBGROUPS)],
    }
    entries = [
        {"label": label, "hexcode": code, "emoji": "x", "group": 5, "subgroup": SUBGROUPS.index(subgroup)}
        for label, (code, subgroup) in LABELS.items()
    ]
    entries += [{"label": "flag", "hexcode": "1F3C1", "emoji": "x", "group": 9, "subgroup": 0}, {"label": "letter"}]
    files = {"data": entries, "messages": messages}
    return {f"package/en/{name}.json": json.dumps(content).encode() for name, content in files.items()}


def picture(form: str, color: str = "red") -> bytes:
    image, buffer = Image.new("RGBA", (200, 100)), io.BytesIO()
    image.paste(color, (20, 30, 190, 80))
    image.save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def packages(tmp_path, monkeypatch) -> dict[str, dict[str, bytes]]:
    """Name of each package that can be had -> its files."""
    codes = [code.lower() for code, _ in LABELS.values()]
    held = {
        "emojibase-data": emojibase(),
        "@lobehub/fluent-emoji-3d": {f"package/assets/{code}.webp": picture("WEBP") for code in codes},
        "emoji-datasource-twitter": {f"package/img/twitter/64/{code}.png": picture("PNG") for code in codes[:-1]},
        "vega_datasets": {
            f"vega_datasets/_data/{file}": (
                json.dumps([dict.fromkeys(columns, number) for number in (3, 1, 0, None)])
                if file.endswith(".json")
                else ",".join(columns)
                + "\n"
                + "".join(",".join([value] * len(columns)) + "\n" for value in ("3", "", "1"))
            ).encode()
            for file, columns in TABLES.items()
        },
    }

    def fetch(package: Package) -> Path:
        if package.name not in held:
            raise PackageUnavailable(f"{package}: `apt-get` is not installed, which fetches it")
        return archive(tmp_path / package.file_name, held[package.name])

    for module in (stock, drawings, backgrounds, tables):
        monkeypatch.setattr(module, "fetch", fetch)
    return held


def archive(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as wheel:
            for name, content in files.items():
                wheel.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_names_are_labels_that_a_person_would_say():
    found = {name.text: name for name in read_names(*emojibase().values())}
    assert list(found) == ["elephant", "car", "grapes", "sun", "polar bear"]
    assert (found["car"].code, found["car"].category, found["sun"].code) == ("1f697", "vehicle", "2600")
    assert [name.with_article for name in found.values()] == ["an elephant", "a car", "grapes", "a sun", "a polar bear"]


def test_a_smaller_world_needs_no_package_of_debian(packages, monkeypatch):
    monkeypatch.setattr(backgrounds, "_NUM_TEXTURES", 10)
    found = read_stock()
    assert [name.text for name in found.names] == ["elephant", "car", "grapes", "sun"]  # one has no twemoji
    assert set(found.drawings) == {"fluent", "twemoji"} and len(found.missing) == 5
    assert all("apt-get" in line for line in found.missing) and all(
        name[:8] == "texture-" for name in found.backgrounds
    )
    assert found.styles(found.names[0], "none") == ["fluent"] and found.styles(found.names[0], "style") == ["twemoji"]
    held_out, trained = (set(found.background_names(axis)) for axis in ("backgrounds", "none"))
    assert len(held_out) == 2 and not held_out & trained and len(held_out | trained) == 10
    assert set(found.columns) == {(3.0, 1.0)}  # numbers above 0
    del packages["@lobehub/fluent-emoji-3d"]
    with pytest.raises(PackageUnavailable, match="fluent-emoji-3d"):
        read_stock()


def test_drawings_are_cropped_and_small(packages):
    names = read_names(*emojibase().values())
    for style, count in (("fluent", 5), ("twemoji", 4)):
        of = read_drawings(style, names)
        assert len(of) == count
        assert {image.size for images in of.values() for image in images} == {
            (MOST_PIXELS, round(50 * MOST_PIXELS / 170))
        }
    faint = Image.new("RGBA", (50, 50), (0, 0, 0, 10))
    faint.paste("blue", (10, 10, 30, 25))
    assert cropped(faint).size == (20, 15)


def test_photographs_are_stamps_whose_caption_or_file_says_a_name(packages, monkeypatch):
    stamps = {
        "animals/elephant.png": picture("PNG"), "animals/elephant.txt": b"An elephant.\nfr.utf8=Un ...",
        "fruit/grapes2.png": picture("PNG"), "fruit/grapes2.txt": b"Some grapes!\n",
        "auto/sedan.png": picture("PNG"), "auto/cat.png": picture("PNG"), "auto/cat.txt": b"A cat.",
    }  # fmt: skip
    packages["tuxpaint-stamps-default"] = {}
    monkeypatch.setattr(drawings, "members", lambda path, pattern: stamps.items())
    assert set(read_drawings("photo", read_names(*emojibase().values()))) == {"elephant", "grapes", "car"}


@pytest.mark.parametrize("capitals", [12, 24, 32])
def test_letters_have_the_height_that_is_asked_for(capitals):
    _, top, _, bottom = font("DejaVuSans-Bold", capitals).getbbox("H")
    assert capitals <= bottom - top <= capitals + 1
