"""The rows of a source as a table, and each of them as a sample."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from data.sample import MEDIA, EmbeddedFile, Medium, Sample
from data.sources.files import find_file
from data.sources.schemas import Schema, read_row
from data.sources.source import Source
from modeling.user_error import UserError

MOST_OF_AN_ID = 200
"""Characters of the id of a bad row that are told."""


@dataclass(frozen=True)
class SourceRows:
    """The rows of a source. It can be sent to other processes, which then map the same table into memory.

    Attributes:
        source: what the user says of it.
        name: what messages call it: the path, or the data set's id with config, revision and split.
        table: the rows, memory-mapped or, of a stream, one after another. Pictures are not decoded.
        schema: the layout of the rows.
        fingerprint: of the rows and of all settings that change what they mean. It depends neither on `weight` nor on
            `num_samples`.
        as_object: returns a row of the table as an object of the schema's columns.
    """

    source: Source
    name: str
    table: datasets.Dataset | datasets.IterableDataset
    schema: Schema
    fingerprint: str
    as_object: Callable[[dict], dict]

    def __len__(self) -> int:
        return len(self.table)

    def sample(self, row: dict, number: int) -> Sample | None:
        """Returns a row as a sample; None if the source's `where` or `min_ratings` leave it out.

        Args:
            row: the row as the table gives it.
            number: its number in the table, which is its id if it has none.

        Raises:
            UserError: the row is bad. The message says what is wrong, and not which row it is (see `name_of`).
        """
        given = self.as_object(row)
        for column, wanted in self.source.where.items():
            if given.get(column) not in (wanted if isinstance(wanted, tuple) else (wanted,)):
                return None
        read = read_row(self._renamed(given), self.schema, self.source.min_ratings)
        if read is None:
            return None
        images, videos = (
            tuple(self._file(file, medium, index) for index, file in enumerate(read.files[medium])) for medium in MEDIA
        )
        row_id = f"row {number}" if read.id is None else read.id
        return Sample(row_id, images, read.turns, read.family, read.system, videos)

    def id_of(self, row: dict) -> str | None:
        """Returns the id of a row, which may be bad; None if it has none."""
        try:
            row_id = self._renamed(self.as_object(row)).get("id")
        except UserError:
            return None
        # As text of a sane length: half a surrogate pair becomes a question mark.
        return None if row_id is None else str(row_id)[:MOST_OF_AN_ID].encode(errors="replace").decode()

    def name_of(self, row: dict, number: int) -> str:
        """Returns what messages call a row."""
        return f"{self.name}: row {number} (id {self.id_of(row)!r})"

    def _renamed(self, row: dict) -> dict:
        """Returns a row by our names of its columns."""
        columns = self.source.columns
        if not columns:
            return row
        rest = {name: value for name, value in row.items() if name not in columns and name not in columns.values()}
        return rest | {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}

    def _file(self, file: Any, medium: Medium, index: int) -> Path | EmbeddedFile:
        """Returns a picture or a video that a row names by its path or holds in bytes."""
        name = f"{'picture' if medium == 'image' else medium} {index}"
        data, path = None, file
        if isinstance(file, bytes):
            data, path = file, None
        elif isinstance(file, dict):
            data, path = file.get("bytes"), file.get("path")
        if isinstance(data, bytes):
            return EmbeddedFile(data, path if isinstance(path, str) and path else name)
        if data is not None or not isinstance(path, str):
            raise UserError(f"{name} is {file!r:.100}, a path or bytes are expected")
        if self.source.images is None:
            raise UserError(f"{medium} {path!r} is a path; give `images`, the folder that paths start from")
        return find_file(self.source.images, path, medium)
