"""Webdataset shards: tar files in which the members of a row stand together, such as `0001.json` and `0001.jpg`.

The `.json` member holds the row, and picture members are its pictures. `datasets` has a reader of its own for shards,
which takes the columns of all rows from the first five and drops what later rows have beside. Here each row keeps all.
"""

import os
import tarfile
from collections.abc import Iterator
from itertools import groupby
from typing import Any, ClassVar, NamedTuple

import datasets

from data.sources.row_table import ROW, Files, RowTable, parse_row
from data.sources.schemas import columns_of
from modeling.user_error import UserError

SHARD = ".tar"
"""Ending of a shard."""
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
"""Endings of members that are pictures."""
MAX_MEMBER = 256 * 2**20
"""Largest member in bytes."""


class _Member(NamedTuple):
    row: str
    """What the members of its row are called up to the dot."""
    name: str
    ending: str
    data: bytes


def parse_shard_row(row: dict) -> dict:
    """Returns a row of such a table as the object that its `.json` says, with its pictures as `images`.

    Raises:
        UserError: there is no such object, it names another number of pictures than there are, or a member is not read.
    """
    if row["unread"]:
        raise UserError(f"a member is called {row['unread'][0]!r}, allowed: .json, {', '.join(PICTURES)}")
    if not row[ROW]:
        raise UserError("it has no .json member, which holds the row")
    parsed, pictures = parse_row(row), row["pictures"]
    if not pictures:
        return parsed
    for column in columns_of("image"):
        named = parsed.pop(column, None)
        number = len(named) if isinstance(named, list) else 1
        if named and number != len(pictures):
            raise UserError(f"{column!r} names {number} pictures, the shard holds {len(pictures)}")
    return parsed | {"images": pictures}


def rows_of(files: Files) -> Iterator[dict]:
    """Yields the rows of shards. Each is made of members that stand together and are called the same up to a dot."""
    for shard, _, _ in files:
        for _, members in groupby(_members(shard), key=lambda member: member.row):
            row: dict[str, Any] = {ROW: "", "pictures": [], "unread": []}
            for member in members:
                if member.ending == ".json":
                    row[ROW] = member.data.decode(errors="replace")
                elif member.ending.endswith(PICTURES):
                    row["pictures"].append({"bytes": member.data, "path": member.name})
                else:
                    row["unread"].append(member.name)
            yield row


def _members(shard: str) -> Iterator[_Member]:
    """Yields the members of a shard."""
    try:
        with tarfile.open(shard, "r|") as tar:
            for info in tar:
                if info.size > MAX_MEMBER:
                    raise UserError(f"{shard}: {info.name} has {info.size} bytes, at most {MAX_MEMBER} are allowed")
                content = tar.extractfile(info) if info.isfile() else None
                if content is not None:
                    folder, file = os.path.split(info.name)
                    stem, _, ending = file.partition(".")
                    yield _Member(os.path.join(folder, stem), info.name, f".{ending.lower()}", content.read())
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{shard}: cannot be read ({error})") from error


class ShardRows(RowTable):
    """Writes the rows of shards to the cache, with their pictures."""

    FEATURES: ClassVar[dict[str, Any]] = {
        **RowTable.FEATURES,
        "pictures": datasets.List({"bytes": datasets.Value("large_binary"), "path": datasets.Value("string")}),
        "unread": datasets.List(datasets.Value("string")),
    }
    ROWS_AT_ONCE = 100
    rows_of = staticmethod(rows_of)
