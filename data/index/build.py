"""Makes the indexes of sources (data/index/index.py): reads, checks and encodes every row, once, with all cores.

First the rows of all sources are read and encoded. Then every picture is looked at once, whatever number of rows and
sources show it. Last, what was found about the pictures is written beside the rows.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Features
from transformers import ProcessorMixin
from transformers import __version__ as transformers_version

from data.conversations import check_expansion, naming_sample
from data.images import MAX_PIXELS, check_tokens_at
from data.index.index import FEATURES
from data.index.pictures import LOOKED_AT, NO_SIZE, Look
from data.index.rows import READ, ReadRows
from data.sample import Sample
from data.sources.reading import open_source
from data.sources.rows import SourceRows
from data.sources.source import Source
from modeling.whole_file import whole_file

_VERSION = 1
"""Of what an index holds. An index of another version is made anew."""
_BUILDING = ".building"
"""Folder of what is written meanwhile."""
_ROWS_AT_ONCE, _PICTURES_AT_ONCE = 128, 16
_ROWS_PER_PROCESS, _PICTURES_PER_PROCESS = 4_000, 200
"""As many are worth the start of a process."""
_ROWS_OF_A_CHUNK = 1_000
"""Rows that lie together in an index."""


def build_indexes(
    sources: Sequence[Source], processor: ProcessorMixin, folder: Path, *, decode: bool, max_pixels: int = MAX_PIXELS
) -> list[Path]:
    """Writes the index of each source in `folder`, unless it is there. Equal sources share one.

    Args:
        decode: whether every picture is decoded, to find broken ones. If not, only their headers are read.
        max_pixels: the most that a picture may have.

    Returns:
        The path of each source's index.

    Raises:
        UserError: a source cannot be read. What is wrong with a row or a picture is said in the index.
    """
    with _bars_on_terminals():
        return _build_indexes(sources, processor, folder, decode, max_pixels)


@contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """Inside, `datasets` shows its bars on a terminal alone. In a file they would be one line without end."""
    if sys.stderr.isatty() or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def _build_indexes(
    sources: Sequence[Source], processor: ProcessorMixin, folder: Path, decode: bool, max_pixels: int
) -> list[Path]:
    opened: dict[Path, SourceRows] = {}
    paths = []
    for source in sources:
        rows = open_source(source)
        decides = [_VERSION, transformers_version, rows.fingerprint, _fingerprint(processor), decode, max_pixels]
        name = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
        paths.append(folder / f"{name}.arrow")
        opened[paths[-1]] = rows
    missing = {path: rows for path, rows in opened.items() if not path.exists()}
    if missing:
        building = folder / _BUILDING
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        look = Look(processor, max_pixels, decode)
        _write_indexes(missing, processor, look, building)
        shutil.rmtree(building, ignore_errors=True)
    return paths


def _write_indexes(sources: Mapping[Path, SourceRows], processor: ProcessorMixin, look: Look, building: Path) -> None:
    tables = {
        path: _map(
            rows.table, ReadRows(rows, processor, look), READ, building / f"rows-{path.name}",
            desc=f"rows of {rows.name}", at_once=_ROWS_AT_ONCE, per_process=_ROWS_PER_PROCESS,
        )
        for path, rows in sources.items()
    }  # fmt: skip
    pictures = pa.chunked_array(
        [chunk for table in tables.values() for chunk in pc.list_flatten(table["pictures"]).chunks], pa.string()
    )
    names = pc.unique(pictures.drop_null())
    looked_at = _map(
        datasets.Dataset(pa.table({"picture": names})), look, LOOKED_AT, building / "pictures.arrow",
        desc="pictures", at_once=_PICTURES_AT_ONCE, per_process=_PICTURES_PER_PROCESS,
    )  # fmt: skip
    for path, rows in sources.items():
        table = _join(tables[path], names, looked_at, rows.source)
        _check_processor(table, processor)
        with whole_file(path) as partial, pa.ipc.new_stream(str(partial), table.schema) as writer:
            writer.write_table(table, max_chunksize=_ROWS_OF_A_CHUNK)


def _map(
    table: datasets.Dataset, function: Callable, features: Features, path: Path, *, desc: str, at_once: int,
    per_process: int,
) -> pa.Table:  # fmt: skip
    """Returns what `function` gives for the rows of a table, memory-mapped from files at `path`."""
    if not len(table):
        return features.arrow_schema.empty_table()
    processes = min(os.cpu_count() or 1, len(table) // per_process)
    start = time.perf_counter()
    mapped = table.map(
        function,
        with_indices=True,
        batched=True,
        batch_size=at_once,
        num_proc=processes if processes > 1 else None,
        features=features,
        remove_columns=table.column_names,
        load_from_cache_file=False,
        cache_file_name=str(path),
        new_fingerprint=path.stem,
        desc=desc,
    )
    if not sys.stderr.isatty():
        rate = len(table) / (time.perf_counter() - start)
        print(f"{desc}: {len(table):,}, {rate:,.0f} a second", file=sys.stderr)
    return mapped.data.table


def _join(table: pa.Table, names: pa.Array, looked_at: pa.Table, source: Source) -> pa.Table:
    """Returns the table of an index.

    Args:
        table: the rows, as `ReadRows` gives them.
        names: pictures by their paths.
        looked_at: what `Look` found of them.
        source: where the rows come from.
    """
    counts = pc.list_value_length(table["pictures"]).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    pictures = pc.list_flatten(table["pictures"]).combine_chunks()
    is_path = pictures.is_valid()
    numbers = pc.index_in(pictures, value_set=names)  # null for embedded pictures
    columns = {
        name: pc.if_else(
            is_path, looked_at[name].combine_chunks().take(numbers), pc.list_flatten(table[name]).combine_chunks()
        )
        for name in LOOKED_AT
    }
    if source.images is not None:  # else no picture has a path
        root = os.path.realpath(source.images)
        pictures = pc.utf8_slice_codeunits(pictures, len(os.path.join(root, "")))
    num_tokens = np.concatenate([[0], np.cumsum(columns["num_tokens"].to_numpy(zero_copy_only=False))])
    lengths = pc.list_value_length(table["input_ids"]).to_numpy() - counts + np.diff(num_tokens[offsets])
    reasons = table["reason"].to_pylist() if columns["problem"].null_count < len(pictures) else None
    if reasons is not None:
        rows = np.repeat(np.arange(len(table)), counts)
        for place in np.flatnonzero(columns["problem"].is_valid()):
            reasons[rows[place]] = reasons[rows[place]] or columns["problem"][place].as_py()
    replaced = {
        "pictures": pa.ListArray.from_arrays(offsets, pictures),
        "heights": pa.ListArray.from_arrays(offsets, columns["height"]),
        "widths": pa.ListArray.from_arrays(offsets, columns["width"]),
        "length": lengths.astype(np.int32),
        **({} if reasons is None else {"reason": pa.array(reasons, pa.string())}),
    }
    arrays = [replaced[name] if name in replaced else table[name] for name in FEATURES]
    return pa.table(arrays, names=list(FEATURES)).cast(FEATURES.arrow_schema)


def _check_processor(table: pa.Table, processor: ProcessorMixin) -> None:
    """Raises UserError where the processor itself makes other tokens of the rows than are in an index."""
    heights, widths = (pc.list_flatten(table[name]).to_pylist() for name in ("heights", "widths"))
    check_tokens_at(set(zip(heights, widths, strict=True)) - {NO_SIZE}, processor)
    is_good = pc.is_null(table["reason"]).to_numpy() & ~table["filtered"].to_numpy()
    has_picture = pc.list_value_length(table["pictures"]).to_numpy() > 0
    examples = [*np.flatnonzero(is_good & has_picture)[:1], *np.flatnonzero(is_good)[:1]]
    for example in examples[:1]:
        (row,) = table.slice(example, 1).to_pylist()
        turns = tuple(zip(row["questions"], row["answers"], strict=True))
        pictures = tuple(Path(name or "") for name in row["pictures"])
        sample = Sample(row["id"], pictures, turns, row["family"], row["system"])
        with naming_sample(sample):
            check_expansion(sample, list(zip(row["heights"], row["widths"], strict=True)), processor)


def _fingerprint(processor: ProcessorMixin) -> str:
    """Returns a fingerprint of all that decides the tokens which a processor makes."""
    decides = [
        type(processor).__name__,
        processor.to_json_string(),
        processor.chat_template,
        processor.tokenizer.backend_tokenizer.to_str(),
        {name: str(token) for name, token in processor.tokenizer.special_tokens_map.items()},
    ]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()
