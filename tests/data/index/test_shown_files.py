"""A picture that changes between two starts of a run is seen, and a run that moved with its pictures goes on."""

import os
import shutil

import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.index.shown_files import END, first_changed, record


@pytest.fixture
def pictures(tmp_path):
    """Three pictures of noise, larger than what is hashed of them, and what was recorded of them."""
    (tmp_path / "images").mkdir()
    files = [tmp_path / "images" / f"{number}.png" for number in range(3)]
    for file in files:
        Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3)).save(file)
        assert file.stat().st_size > 2 * END
    record(files, tmp_path / "recorded.parquet")
    return files


def test_what_was_touched_or_moved_is_the_same(pictures, tmp_path):
    recorded = tmp_path / "recorded.parquet"
    assert first_changed(pictures, pq.read_table(recorded)) is None
    os.utime(pictures[1], ns=(1, 1))
    assert first_changed(pictures, pq.read_table(recorded)) is None
    shutil.copytree(tmp_path / "images", tmp_path / "moved")
    moved = [tmp_path / "moved" / file.name for file in pictures]
    assert first_changed(moved, pq.read_table(recorded)) is None
    assert first_changed(moved[::-1], pq.read_table(recorded)) == moved[2], "the order counts"
    record([], recorded)
    assert first_changed([], pq.read_table(recorded)) is None


@pytest.mark.parametrize("change", ["pixel in the middle", "another size", "missing"])
def test_another_picture_is_named(pictures, tmp_path, change):
    file = pictures[1]
    if change == "missing":
        file.unlink()
    elif change == "another size":
        file.write_bytes(file.read_bytes() + b"\0")
    else:
        size = file.stat().st_size
        with Image.open(file) as image:
            image.putpixel((32, 32), tuple(255 - value for value in image.getpixel((32, 32))))
            image.save(file)
        assert file.stat().st_size == size, "noise is not compressed"
    assert first_changed(pictures, pq.read_table(tmp_path / "recorded.parquet")) == file
