"""Sources that are read as a stream, for what does not fit a disk: nothing is copied, or known beforehand."""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import datasets

from data.sources import json_rows, shards
from data.sources.library import in_one_line
from data.sources.reading import as_typed, ending_of, paths_of, rows_with_schema
from data.sources.row_table import files_of, parse_row
from data.sources.rows import SourceRows
from data.sources.source import Source
from data.sources.tables import DEFAULT_SPLIT, TABLES, parts_of_hub
from modeling.user_error import UserError

AsObject: TypeAlias = Callable[[dict], dict]

_FIRST_ROWS = 100
"""Rows of JSON whose columns tell the schema, as no more are read before the training."""


def open_stream(source: Source) -> SourceRows:
    """Returns the rows of a source. Their table is an IterableDataset, whose pictures are not decoded.

    Raises:
        UserError: the source cannot be read, has no rows, or fits no schema or several, as far as its first rows tell.
    """
    name = str(source.path or source.hub)
    with in_one_line(name):
        table, as_object = _hub(source) if source.path is None else _files(name, paths_of(source.path))
        first = list(islice(table, _FIRST_ROWS))
    if not first:
        raise UserError(f"{name}: has no rows")
    columns = set(table.column_names or ())
    if as_object is not as_typed:
        columns = set()
        for row in first:
            try:
                columns.update(as_object(row))
            except UserError:  # it is a bad row, which is named when it is read
                continue
    return rows_with_schema(source, name, table, sorted(columns), as_object, content=name)


def _files(name: str, paths: Sequence[Path]) -> tuple[datasets.IterableDataset, AsObject]:
    """Returns the rows of files, and what makes an object of a row."""
    if paths[0].is_dir():
        raise UserError(f"{name}: a folder is not streamed; give its files, such as {name}/*.parquet")
    ending, files = ending_of(name, paths), files_of(paths)
    if ending in TABLES:
        data_files = [str(path) for path in paths]
        table = datasets.load_dataset(TABLES[ending], data_files=data_files, split=DEFAULT_SPLIT, streaming=True)
        return table.decode(False), as_typed
    reader, as_object = (
        (shards.rows_of, shards.parse_shard_row) if ending == shards.SHARD else (json_rows.rows_of, parse_row)
    )
    return datasets.IterableDataset.from_generator(reader, gen_kwargs={"files": list(files)}), as_object


def _hub(source: Source) -> tuple[datasets.IterableDataset, AsObject]:
    """Returns the rows of a data set on the Hub, and what makes an object of a row."""
    parts, split = parts_of_hub(source.hub or ""), source.split or DEFAULT_SPLIT
    table = datasets.load_dataset(
        parts["repo"], parts["config"], revision=parts["revision"], split=split, streaming=True
    )
    return table.decode(False), as_typed
