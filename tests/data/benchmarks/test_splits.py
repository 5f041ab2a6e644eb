"""Splits of a folder that is laid out as on the Hub."""

import datasets
import pytest

from data.benchmarks.place import Place
from modeling.user_error import UserError
from tests.benchmark_files.tables import write_split


def table(path, split, config=None):
    return Place(path).table(("id",), split=split, config=config)


@pytest.mark.parametrize("room", ["", "data", "en", "en/data"])
def test_a_split_is_what_its_files_are_called(tmp_path, room):
    """`datasets` alone would call the first two validation, and the last train."""
    for number, split in enumerate(("dev", "validation", "test", "testdev")):
        write_split([{"id": number}], {}, tmp_path / room, split)
    for number, split in enumerate(("dev", "validation", "test", "testdev")):
        assert table(tmp_path, split, "en")["id"] == [number]


def test_all_files_of_a_split_are_read_in_order(tmp_path):
    for number in (1, 0):
        datasets.Dataset.from_dict({"id": [number]}).to_parquet(tmp_path / f"test-0000{number}-of-00002-ab12.parquet")
    assert table(tmp_path, "test")["id"] == [0, 1]
    (tmp_path / "test-00001-of-00002-ab12.parquet").unlink()
    with pytest.raises(
        UserError, match="split test has 1 of the 2 files that test-00000-of-00002-ab12.parquet tells of"
    ):
        table(tmp_path, "test")


def test_a_split_that_is_not_there_is_refused(tmp_path):
    write_split([{"id": 0}], {}, tmp_path, "validation")
    with pytest.raises(UserError, match="split: got 'testdev', allowed: validation"):
        table(tmp_path, "testdev")
