"""Opens sources: finds the reader for what a source names, and the schema of its rows."""

import glob
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import datasets

from data.sample import BadSample, OnBadSample, Sample, check_bad_share
from data.sources.json_rows import LINES, LISTS, JsonRows
from data.sources.row_table import open_table, parse_row
from data.sources.rows import SourceRows
from data.sources.schemas import SCHEMAS, Schema, schema_of
from data.sources.shards import SHARD, ShardRows, parse_shard_row
from data.sources.source import Source
from data.sources.tables import DEFAULT_SPLIT, TABLES, table_of_files, table_of_folder, table_of_hub
from modeling.user_error import UserError


def open_source(source: Source) -> SourceRows:
    """Returns the rows of a source. Its files are read once, and kept in the cache of `datasets`.

    Raises:
        UserError: the source cannot be read, has no rows, fits no schema or several, or lacks a column that it names.
    """
    name, table, columns, as_object = _table(source)
    return rows_with_schema(source, name, table, columns, as_object, content=table._fingerprint)


def rows_with_schema(
    source: Source,
    name: str,
    table: datasets.Dataset | datasets.IterableDataset,
    columns: Sequence[str],
    as_object: Callable[[dict], dict],
    content: str,
) -> SourceRows:
    """Returns a table as the rows of a source, in the schema that its columns tell.

    Args:
        content: what tells whether the rows are still the same.

    Raises:
        UserError: the columns fit no schema or several, or one is missing that the source names.
    """
    try:
        schema = _schema(source, columns)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    said = json.dumps([content, schema.name, source.meaning()], sort_keys=True)
    return SourceRows(source, name, table, schema, hashlib.sha256(said.encode()).hexdigest(), as_object)


def load_samples(
    source: Source, *, on_bad_sample: OnBadSample = "error", max_bad_share: float = 0.0
) -> tuple[list[Sample], list[BadSample]]:
    """Reads and checks all rows of a source. Picture files must be there, but are not opened.

    Args:
        on_bad_sample: "error" stops at the first bad row. "skip" leaves bad rows out and returns them.
        max_bad_share: with "skip", the largest share of bad rows, in [0, 1], that is not an error.

    Returns:
        The good rows as samples, and the bad ones.

    Raises:
        UserError: as `open_source`, or a row is bad, or too many are.
    """
    rows = open_source(source)
    samples, bad = [], []
    for number, row in enumerate(rows.table):
        try:
            sample = rows.sample(row, number)
        except UserError as error:
            reason = f"{rows.name_of(row, number)}: {error}"
            if on_bad_sample == "error":
                raise UserError(reason) from error
            bad.append(BadSample(rows.id_of(row), number, reason))
        else:
            if sample is not None:
                samples.append(sample)
    check_bad_share(bad, len(rows), max_bad_share)
    return samples, bad


class _Opened(NamedTuple):
    """A source's table, before its schema is known."""

    name: str
    table: datasets.Dataset
    columns: list[str]
    as_object: Callable[[dict], dict]


def _table(source: Source) -> _Opened:
    """Returns the table of a source."""
    if source.hub is not None:
        table = table_of_hub(source.hub, source.split)
        return _typed(f"{source.hub}, split {table.split}", table)
    assert source.path is not None
    name, paths = str(source.path), paths_of(source.path)
    if len(paths) == 1 and paths[0].is_dir():
        return _typed(name, table_of_folder(paths[0], source.split))
    if source.split not in (None, DEFAULT_SPLIT):
        raise UserError(f"{name}: split: got {source.split!r}, files have no splits")
    ending = ending_of(name, paths)
    if ending in (*LISTS, *LINES):
        return _Opened(name, *open_table(JsonRows, paths, name), parse_row)
    if ending == SHARD:
        return _Opened(name, *open_table(ShardRows, paths, name), parse_shard_row)
    return _typed(name, table_of_files(paths, name))


def _typed(name: str, table: datasets.Dataset) -> _Opened:
    return _Opened(name, table, sorted(table.column_names), as_typed)


def as_typed(row: dict) -> dict:
    return row


def paths_of(path: Path) -> list[Path]:
    """Returns the files that a path or a pattern names, in the order of their names."""
    if path.exists():
        return [path]
    found = sorted(map(Path, glob.glob(str(path), recursive=True)))
    if not found:
        raise UserError(f"{path}: there is no such file or folder, and no file that fits it as a pattern")
    return found


def ending_of(name: str, paths: Sequence[Path]) -> str:
    """Returns the one ending that all files have."""
    endings = (*LISTS, *LINES, *TABLES, SHARD)
    found = {next((ending for ending in endings if path.name.endswith(ending)), path.suffix) for path in paths}
    if len(found) > 1 or not found <= set(endings):
        raise UserError(f"{name}: files end in {', '.join(sorted(found))}, allowed is one of {', '.join(endings)}")
    return found.pop()


def _schema(source: Source, columns: Sequence[str]) -> Schema:
    """Returns the schema of rows with these columns. Raises UserError if a column that the source names is missing."""
    wanted = {f"columns.{ours}": theirs for ours, theirs in source.columns.items()}
    wanted |= {f"{setting}.{name}": name for setting in ("where", "min_ratings") for name in getattr(source, setting)}
    for setting, column in wanted.items():
        if column not in columns:
            raise UserError(f"{setting}: no column is called {column!r}; they are {', '.join(columns)}")
    ours = (set(columns) - set(source.columns.values()) - set(source.columns)) | set(source.columns)
    if source.schema_name is None:
        return schema_of(ours)
    schema = next(schema for schema in SCHEMAS if schema.name == source.schema_name)
    missing = sorted(set(schema.columns) - ours)
    if missing:
        raise UserError(f"schema {schema.name}: no column is called {missing[0]!r}; they are {', '.join(columns)}")
    return schema
