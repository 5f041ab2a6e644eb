"""Checks what rows of questions hold. Whoever made the files may have put anything there."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from data.benchmarks.place import StoredPicture
from modeling.user_error import UserError


def text_of(row: Mapping[str, Any], name: str, where: str) -> str:
    """Returns a field that must be a text. Raises UserError where it is not."""
    if not isinstance(row[name], str):
        raise _wrong(row, name, where, "a text")
    return row[name]


def id_of(row: Mapping[str, Any], name: str, where: str) -> str:
    """Returns a field that must be a text or a whole number, as a text. Raises UserError where it is not."""
    if not isinstance(row[name], (str, int)) or isinstance(row[name], bool):
        raise _wrong(row, name, where, "a text or a whole number")
    return str(row[name])


def number_of(row: Mapping[str, Any], name: str, where: str) -> str:
    """Returns a field that must be a whole number, or its digits, as a text. Raises UserError where it is not."""
    if not re.fullmatch("[0-9]{1,18}", text := id_of(row, name, where)):
        raise _wrong(row, name, where, "a whole number")
    return str(int(text))


def texts_of(row: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    """Returns a field that must be a list of one text or more. Raises UserError where it is not."""
    value = row[name]
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise _wrong(row, name, where, "a list of texts")
    return tuple(value)


def one_of(row: Mapping[str, Any], name: str, allowed: Sequence[str], where: str) -> str:
    """Returns a field that must be one of the texts or letters of `allowed`. Raises UserError where it is not."""
    if not isinstance(row[name], str) or row[name] not in tuple(allowed):
        raise _wrong(row, name, where, f"one of {', '.join(allowed)}")
    return row[name]


def rows_of(table: datasets.Dataset, columns: Sequence[str], name: str) -> Iterator[tuple[str, dict]]:
    """Gives what messages call each row, and its values in these columns. Nothing else is read.

    Args:
        name: what messages call the table.
    """
    number = 0
    for batch in table.select_columns(list(columns)).iter(batch_size=1000):
        for values in zip(*batch.values(), strict=True):
            yield f"{name}, row {number}", dict(zip(batch, values, strict=True))
            number += 1


def stored_pictures(table: datasets.Dataset, column: str, where: str) -> list[StoredPicture]:
    """Returns the picture of each row. None of them is read.

    Args:
        table: pictures not decoded. A row has one, {bytes, path}, or a list of which the first is taken.
        column: the column of pictures.
        where: what messages call the table.

    Raises:
        UserError: the column holds something else, or a row has no picture.
    """
    stored = table.data.column(column)
    listed = pa.types.is_list(stored.type) or pa.types.is_large_list(stored.type)
    picture = stored.type.value_type if listed else stored.type
    if not pa.types.is_struct(picture) or picture.get_field_index("bytes") < 0:
        raise UserError(f"{where}: {column}: got {stored.type}, pictures {{bytes, path}} are expected")
    there = pc.greater(pc.list_value_length(stored), 0) if listed else pc.is_valid(pc.struct_field(stored, "bytes"))
    for row, has_picture in enumerate(there.to_pylist()):
        if not has_picture:
            raise UserError(f"{where}, row {row}: {column}: has no picture")
    return [StoredPicture(table, row, column) for row in range(len(table))]


def _wrong(row: Mapping[str, Any], name: str, where: str, expected: str) -> UserError:
    return UserError(f"{where}: {name}: got {row[name]!r:.80}, {expected} is expected")
