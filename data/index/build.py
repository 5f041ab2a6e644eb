"""Makes the indexes of sources (data/index/index.py): reads, checks and encodes every row, once, with all cores.

First the rows of all sources are read and encoded. Then every picture and video is looked at once, whatever number of
rows and sources show it. Last, what was found about them is written beside the rows.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from data.images import MAX_PIXELS
from data.index.joining import LookedAt, joined
from data.index.look import LOOKED_AT, Look
from data.index.rows import READ, ReadRows
from data.media import READERS
from data.sample import MEDIA, Medium, Sample, mark_of
from data.sources.reading import open_source
from data.sources.rows import SourceRows
from data.sources.source import Source
from modeling.whole_file import whole_file

_VERSION = 3
"""Of what an index holds. An index of another version is made anew."""
_BUILDING = ".building"
"""Folder of what is written meanwhile."""
_BYTES_AT_ONCE = 64 * 2**20
"""As many of a source's rows are read together, but at least one row: rows may hold videos."""
_ROWS_AT_ONCE, _FILES_AT_ONCE = 128, {"image": 64, "video": 1}
_ROWS_PER_PROCESS, _FILES_PER_PROCESS = 4_000, {"image": 200, "video": 8}
"""As many are worth the start of a process."""
_ROWS_OF_A_CHUNK = 20_000
"""Rows that lie together in an index. A process that opens it holds some 100 kB for each chunk."""


def build_indexes(
    sources: Sequence[Source], processor: ProcessorMixin, folder: Path, *, decode: bool, max_pixels: int = MAX_PIXELS
) -> list[Path]:
    """Writes the index of each source in `folder`, unless it is there. Equal sources share one.

    Args:
        decode: whether every picture and video is decoded, to find broken ones. If not, only their headers are read.
        max_pixels: the most that a picture, or a frame of a video, may have.

    Returns:
        The path of each source's index.

    Raises:
        UserError: a source cannot be read. What is wrong with a row, a picture or a video is said in the index.
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
        look = {medium: Look(medium, processor, max_pixels, decode) for medium in MEDIA}
        _write_indexes(missing, processor, look, building)
        shutil.rmtree(building, ignore_errors=True)
    return paths


def _write_indexes(
    sources: Mapping[Path, SourceRows], processor: ProcessorMixin, look: Mapping[Medium, Look], building: Path
) -> None:
    tables = {
        path: _map(
            rows.table, ReadRows(rows, processor, look), READ, building / f"rows-{path.name}",
            desc=f"rows of {rows.name}", at_once=_rows_at_once(rows.table), per_process=_ROWS_PER_PROCESS,
        )
        for path, rows in sources.items()
    }  # fmt: skip
    found = {medium: _looked_at(medium, tables.values(), look[medium], building) for medium in MEDIA}
    for path, rows in sources.items():
        table = joined(tables[path], found, rows.source)
        _check_processor(table, processor)
        with whole_file(path) as partial, pa.ipc.new_stream(str(partial), table.schema) as writer:
            for start in range(0, len(table), _ROWS_OF_A_CHUNK):
                writer.write_table(table.slice(start, _ROWS_OF_A_CHUNK).combine_chunks())


def _rows_at_once(table: datasets.Dataset) -> int:
    """Returns how many rows of a source are read together."""
    bytes_of_row = table.data.nbytes // max(1, len(table))
    return max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // max(1, bytes_of_row)))


def _looked_at(medium: Medium, tables: Iterable[pa.Table], look: Look, building: Path) -> LookedAt:
    """Returns what is found of all pictures, or of all videos, that rows name by their paths."""
    named = [chunk for table in tables for chunk in pc.list_flatten(table[medium]).chunks]
    files = pc.unique(pa.chunked_array(named, pa.string()).drop_null())
    found = _map(
        datasets.Dataset(pa.table({"file": files})), look, LOOKED_AT, building / f"{medium}s.arrow",
        desc="pictures" if medium == "image" else "videos",
        at_once=_FILES_AT_ONCE[medium], per_process=_FILES_PER_PROCESS[medium],
    )  # fmt: skip
    return LookedAt(files, found)


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


def _check_processor(table: pa.Table, processor: ProcessorMixin) -> None:
    """Raises UserError where the processor itself makes other tokens of the rows than are in an index."""
    for medium in MEDIA:
        sides = [pc.list_flatten(table[f"{medium}_{side}"]).to_pylist() for side in READERS[medium].sides]
        READERS[medium].check_tokens_at({size for size in zip(*sides, strict=True) if all(size)}, processor)
    is_good = pc.is_null(table["reason"]).to_numpy() & ~table["filtered"].to_numpy()
    has_picture = pc.list_value_length(table["image"]).to_numpy() > 0
    examples = [*np.flatnonzero(is_good & has_picture)[:1], *np.flatnonzero(is_good)[:1]]
    for example in examples[:1]:
        (row,) = table.slice(example, 1).to_pylist()
        # Without its videos: the processor's own call takes none where torchvision is not installed.
        questions = [question.replace(mark_of("video"), "") for question in row["questions"]]
        images, turns = tuple(Path(name or "") for name in row["image"]), zip(questions, row["answers"], strict=True)
        sample = Sample(row["id"], images, tuple(turns), row["family"], row["system"])
        with naming_sample(sample):
            check_expansion(sample, list(zip(row["image_height"], row["image_width"], strict=True)), processor)


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
