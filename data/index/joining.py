"""Writes what was found of pictures and videos beside the rows that show them."""

import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.index.index import FEATURES
from data.index.look import LOOKED_AT
from data.sample import MEDIA, Medium
from data.sources.source import Source


class LookedAt(NamedTuple):
    """What was found of files of one medium."""

    files: pa.Array
    """The files, by their paths. Each is in it once."""
    found: pa.Table
    """What `Look` found of each."""


def joined(table: pa.Table, looked_at: Mapping[Medium, LookedAt], source: Source) -> pa.Table:
    """Returns the table of an index.

    Args:
        table: the rows, as `ReadRows` gives them.
        looked_at: what was found of all files that they name.
        source: where the rows come from.
    """
    lengths = pc.list_value_length(table["input_ids"]).to_numpy()
    reasons: list[str | None] | None = None
    replaced: dict[str, pa.Array] = {}
    for medium in MEDIA:
        counts = pc.list_value_length(table[medium]).to_numpy()
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        files, columns = _of_each_file(table, medium, looked_at[medium])
        num_tokens = np.concatenate([[0], np.cumsum(columns["num_tokens"].to_numpy(zero_copy_only=False))])
        lengths = lengths - counts + np.diff(num_tokens[offsets])
        if columns["problem"].null_count < len(files):
            reasons = reasons or table["reason"].to_pylist()
            rows = np.repeat(np.arange(len(table)), counts)
            for place in np.flatnonzero(columns["problem"].is_valid()):
                reasons[rows[place]] = reasons[rows[place]] or columns["problem"][place].as_py()
        if source.images is not None:  # else no file has a path
            root = os.path.realpath(source.images)
            files = pc.utf8_slice_codeunits(files, len(os.path.join(root, "")))
        replaced[medium] = pa.ListArray.from_arrays(offsets, files)
        for name, column in columns.items():
            replaced[f"{medium}_{name}"] = pa.ListArray.from_arrays(offsets, column)
    replaced["length"] = pa.array(lengths.astype(np.int32))
    if reasons is not None:
        replaced["reason"] = pa.array(reasons, pa.string())
    arrays = [replaced[name] if name in replaced else table[name] for name in FEATURES]
    return pa.table(arrays, names=list(FEATURES)).cast(FEATURES.arrow_schema)


def _of_each_file(table: pa.Table, medium: Medium, looked_at: LookedAt) -> tuple[pa.Array, dict[str, pa.Array]]:
    """Returns the files of one medium that rows show, one row after another, and what was found of each."""
    files = pc.list_flatten(table[medium]).combine_chunks()
    is_path = files.is_valid()
    numbers = pc.index_in(files, value_set=looked_at.files)  # null for embedded files
    columns = {
        name: pc.if_else(
            is_path,
            looked_at.found[name].combine_chunks().take(numbers),
            pc.list_flatten(table[f"{medium}_{name}"]).combine_chunks(),
        )
        for name in LOOKED_AT
    }
    return files, columns
