"""Kept features are read back as they were written. What was damaged or put there is one line, before it is used."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from modeling.user_error import UserError
from training.instruct import features
from training.instruct.features import Features, write_features

SHAPE = (4, 3)
HEADER = "{{'descr': '<f2', 'fortran_order': False, 'shape': {}, }}"


def content(array: np.ndarray, **options) -> bytes:
    written = io.BytesIO()
    np.save(written, array, **options)
    return written.getvalue()


def with_header(text: str, version: int = 1) -> bytes:
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes((version, 0)) + length + text.encode()


@pytest.fixture
def parts(tmp_path, monkeypatch) -> tuple[Path, torch.Tensor]:
    """Two parts of two pictures, and one of one."""
    monkeypatch.setattr(features, "PART", 2)
    expected = torch.arange(5 * 12).reshape(5, *SHAPE).half()
    for number, part in enumerate(expected.split(2)):
        (tmp_path / f"{number:08d}.npy").write_bytes(content(part.numpy()))
    return tmp_path, expected


def test_features_are_those_of_the_parts(parts):
    folder, expected = parts
    np.save(folder / "notes.npy", np.zeros(3))  # is none of theirs
    read = Features(folder, 5, SHAPE)
    assert len(read) == 5 and all(torch.equal(read[number], expected[number]) for number in range(5))


class Pictures(Dataset):
    """Five pictures. The tower makes of each what it is."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.full((1, *SHAPE), float(index))}


def test_parts_that_are_there_are_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PART", 2)
    monkeypatch.setattr(features, "tower_features", lambda model, pixels: pixels)
    tower = SimpleNamespace(device=torch.device("cpu"))
    write_features(tower, Pictures(), tmp_path, batch_size=2)
    first, second, third = sorted(tmp_path.iterdir())
    assert [len(np.load(path)) for path in (first, second, third)] == [2, 2, 1]
    whole = second.read_bytes()
    first.write_bytes(b"is kept as it is")
    second.unlink()
    write_features(tower, Pictures(), tmp_path, batch_size=2)
    assert first.read_bytes() == b"is kept as it is" and second.read_bytes() == whole
    assert np.load(second)[:, 0, 0].tolist() == [2, 3]


GOOD = np.zeros((2, *SHAPE), np.float16)
DAMAGED = {
    "missing": None,
    "empty": b"",
    "truncated": content(GOOD)[:-10],
    "fewer pictures": content(GOOD[:1]),
    "more pictures": content(np.concatenate([GOOD, GOOD])),
    "other patches": content(GOOD[:, :3]),
    "other width": content(GOOD[..., :2]),
    "flat": content(GOOD.flatten()),
    "float64": content(GOOD.astype(np.float64)),
    "integers": content(GOOD.astype(np.int16)),
    "pickled": content(np.array([print, print], dtype=object), allow_pickle=True),
    "archive": b"PK\x03\x04" + bytes(100),
    "terabytes": with_header(HEADER.format("(1000000000000, 4, 3)")),
    "nested": with_header("(" * 150),
    "long header": with_header("(" * 9_000),
    "indented": with_header("  x\n y"),
    "header of 4 GiB": with_header(HEADER.format(GOOD.shape), version=3),
}


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_part_is_named(parts, damaged):
    folder, _ = parts
    path = folder / "00000001.npy"
    path.unlink()
    if damaged is not None:
        path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"00000001.npy: is damaged \(.*\); delete it") as refused:
        Features(folder, 5, SHAPE)
    assert "\n" not in str(refused.value)


def test_a_long_header_is_not_read(parts, monkeypatch):
    """It takes no disk where the file has a hole."""
    folder, _ = parts
    with (folder / "00000000.npy").open("wb") as file:
        file.write(b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little"))
        file.truncate(2**31 + 12)
    monkeypatch.setattr(np, "load", lambda *arguments, **options: pytest.fail("numpy would read 2 GiB"))
    with pytest.raises(UserError, match="00000000.npy: is damaged"):
        Features(folder, 5, SHAPE)
