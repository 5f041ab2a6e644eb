"""Rows as JSON texts in a table. They may have values of different types, which no typed table takes.

`datasets` keeps the table in its cache until a file changes, and maps it into memory.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from data.sources.library import in_one_line
from data.texts.json_text import parse_json
from modeling.user_error import UserError

ROW = "row"
"""The column of texts."""
_NEW_NAMES = "new_names"
"""Column of the names that the object in a row has, and none before it."""

Files = tuple[tuple[str, int, int], ...]
"""Path, size in bytes and time of change of each file. `datasets` reads them anew where one of these is another."""


def files_of(paths: Sequence[Path]) -> Files:
    """Returns what tells whether files are still the same."""
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths)


def parse_row(row: dict) -> dict:
    """Returns a row of such a table as the object that its text says. Raises UserError where it is no object."""
    parsed = parse_json(row[ROW])
    if not isinstance(parsed, dict):
        raise UserError(f"got {type(parsed).__name__}, a row is an object")
    return parsed


@dataclass
class _FilesConfig(datasets.BuilderConfig):
    files: Files = ()


class RowTable(datasets.ArrowBasedBuilder):
    """Writes the rows of files of one format to the cache."""

    BUILDER_CONFIG_CLASS = _FilesConfig
    FEATURES: ClassVar[dict[str, Any]] = {ROW: datasets.Value("large_string")}
    """The columns of a row, `ROW` among them."""
    ROWS_AT_ONCE = 1_000
    """So many rows are in memory at once."""

    @staticmethod
    def rows_of(files: Files) -> Iterator[dict]:
        """Yields the rows of files. Raises UserError if one cannot be read."""
        raise NotImplementedError

    def _info(self) -> datasets.DatasetInfo:
        names = datasets.List(datasets.Value("string"))
        return datasets.DatasetInfo(features=datasets.Features({**self.FEATURES, _NEW_NAMES: names}))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(datasets.Split.TRAIN, gen_kwargs={"files": self.config.files})]

    def _generate_tables(self, files: Files) -> Iterator[tuple[int, pa.Table]]:
        rows, known = self.rows_of(files), set[str]()
        for number in count():
            batch = list(islice(rows, self.ROWS_AT_ONCE))
            if not batch:
                return
            for row in batch:
                new = _names(row) - known
                known |= new
                # As text: half a surrogate pair becomes a question mark.
                row[_NEW_NAMES] = [name.encode(errors="replace").decode() for name in sorted(new)]
            yield number, pa.Table.from_pylist(batch, self.info.features.arrow_schema)


class OpenedTable(NamedTuple):
    """A table, and the names that the objects in its rows have."""

    table: datasets.Dataset
    columns: list[str]


def open_table(kind: type[RowTable], paths: Sequence[Path], name: str) -> OpenedTable:
    """Returns the rows of files.

    Args:
        kind: reads files of their format.
        name: what messages call the source.

    Raises:
        UserError: a file cannot be read, or there are no rows. A text that is no object is found by `parse_row`.
    """
    with in_one_line(name):
        builder = kind(files=files_of(paths))
        builder.download_and_prepare()
        table = builder.as_dataset(split=datasets.Split.TRAIN)
    columns = pc.list_flatten(table.data[_NEW_NAMES]).unique().to_pylist()
    return OpenedTable(table.select_columns(list(kind.FEATURES)), sorted(columns))


def _names(row: dict) -> Set[str]:
    """Returns the names that the object in a row has."""
    try:
        return parse_row(row).keys()
    except UserError:  # it is a bad row, which is named when it is read
        return frozenset()
