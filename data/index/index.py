"""The index of a source: an Arrow file with one row for each of the source's, read, checked and encoded.

It is made once (data/index/build.py). Every process maps it into its memory, so that none holds an object per row.
Bad rows and rows that a filter leaves out stay in it, marked, so that numbers of rows are those of the source.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, Features, List, Value

from data.conversations import IGNORE_INDEX
from data.index.shown_files import CONTENT
from data.media import READERS, Size
from data.sample import MEDIA, Medium, Sample
from data.sources.reading import open_source
from data.sources.rows import SourceRows
from data.sources.source import Source

FEATURES = Features(
    {
        "id": Value("string"),
        "family": Value("string"),
        "system": Value("string"),
        "questions": List(Value("string")),
        "answers": List(Value("string")),
        # Paths of pictures and of videos, which start from the source's folder, and their sizes. What is embedded in
        # its row has no path.
        "image": List(Value("string")),
        "image_height": List(Value("int32")),
        "image_width": List(Value("int32")),
        "video": List(Value("string")),
        "video_frames": List(Value("int32")),
        "video_height": List(Value("int32")),
        "video_width": List(Value("int32")),
        # What is compared of each at later starts.
        **{f"{medium}_{name}": List(feature) for medium in MEDIA for name, feature in CONTENT.items()},
        # The text, with one placeholder per picture and video, and the tokens [start, end) of each answer, one after
        # another.
        "input_ids": List(Value("int32")),
        "spans": List(Value("int32")),
        "supervised": Value("int32"),
        # The number of tokens, placeholders expanded.
        "length": Value("int32"),
        # Equal samples have equal digests.
        "digest": Value("int64"),
        "filtered": Value("bool"),
        # What is wrong with the row, null if nothing is.
        "reason": Value("string"),
    }
)


class Index:
    """The rows of a source, as `build_indexes` made them.

    Attributes:
        path: the Arrow file.
        source: the source.
        name: what messages call it.
        lengths: the number of tokens of each row, placeholders expanded, [rows] int32.
        supervised: how many of them are supervised, [rows] int32.
        num_pictures: how many pictures a row has, [rows] int32.
        has_picture, has_video: whether a row has a picture, and a video, [rows] bool.
        digests: equal for equal samples, [rows] int64.
        is_filtered: whether the source's filters leave a row out, [rows] bool.
        is_bad: whether something is wrong with a row, [rows] bool.
        is_good: whether a row is a sample, however long, [rows] bool.

    What is said of all rows is read anew each time that it is asked for, and not kept in memory.
    """

    def __init__(self, path: Path, source: Source):
        self.path, self.source = path, source
        self.name = str(source.path or source.hub)
        self._table = Dataset.from_file(str(path))
        self._image_root = os.path.realpath(source.images or ".")  # without files by path it is not used
        self._marks = self._table.select_columns(["id", "reason"])

    def __len__(self) -> int:
        return len(self._table)

    @property
    def lengths(self) -> np.ndarray:
        return self._column("length").to_numpy()

    @property
    def supervised(self) -> np.ndarray:
        return self._column("supervised").to_numpy()

    @property
    def num_pictures(self) -> np.ndarray:
        return pc.list_value_length(self._column("image")).to_numpy()

    @property
    def has_picture(self) -> np.ndarray:
        return self.num_pictures > 0

    @property
    def has_video(self) -> np.ndarray:
        return pc.list_value_length(self._column("video")).to_numpy() > 0

    @property
    def digests(self) -> np.ndarray:
        return self._column("digest").to_numpy()

    @property
    def is_filtered(self) -> np.ndarray:
        return self._column("filtered").to_numpy()

    @property
    def is_bad(self) -> np.ndarray:
        return pc.is_valid(self._column("reason")).to_numpy()

    @property
    def is_good(self) -> np.ndarray:
        return ~(self.is_bad | self.is_filtered)

    def sample(self, row: int) -> Sample:
        """Returns a good row as a sample. What is embedded in it is read from the source."""
        found = self._table[row]
        if None in (*found["image"], *found["video"]):
            sample = self._rows.sample(self._rows.table[row], row)
            assert sample is not None, "the source's filters left out another row when the index was made"
            return sample
        images, videos = (tuple(Path(self._image_root, name) for name in found[medium]) for medium in MEDIA)
        turns = tuple(zip(found["questions"], found["answers"], strict=True))
        return Sample(found["id"], images, turns, found["family"], found["system"], videos)

    def tokens(self, row: int) -> dict[str, torch.Tensor]:
        """Returns what `data.conversations.encode_text` gives for a good row."""
        found = self._table[row]
        input_ids = torch.tensor(found["input_ids"], dtype=torch.int32)
        labels = torch.full_like(input_ids, IGNORE_INDEX)
        for start, end in zip(found["spans"][::2], found["spans"][1::2], strict=True):
            labels[start:end] = input_ids[start:end]
        return {"input_ids": input_ids, "labels": labels}

    def texts(self, kind: Literal["questions", "answers"], rows: np.ndarray) -> pa.ListArray:
        """Returns the questions, or the answers, of good rows, a list of texts for each."""
        return self._column(kind).take(rows).combine_chunks()

    def sizes(self, row: int, medium: Medium) -> list[Size]:
        """Returns the size (`data.media`) of each picture, or of each video, of a good row."""
        found = self._table[row]
        return list(zip(*(found[name] for name in _sides(medium)), strict=True))

    def sizes_of(self, rows: np.ndarray, medium: Medium) -> np.ndarray:
        """Returns the sizes (`data.media`) of all pictures, or of all videos, of rows, [files, 2 or 3] int32."""
        columns = [pc.list_flatten(self._column(name).take(rows)).to_numpy() for name in _sides(medium)]
        return np.stack(columns, axis=1)

    def files(self, rows: np.ndarray) -> Iterator[Path]:
        """Yields the file of each picture and each video of rows, each once. Those within their rows have none."""
        for medium in MEDIA:
            names = pc.list_flatten(self._column(medium).take(rows)).unique().drop_null()
            yield from (Path(self._image_root, name) for name in names.to_pylist())

    def contents(self, rows: np.ndarray) -> pa.Table:
        """Returns the content (`data.index.shown_files.CONTENT`) that each of `files` had, in their order."""
        found = []
        for medium in MEDIA:
            names = pc.list_flatten(self._column(medium).take(rows)).combine_chunks()
            first = pc.index_in(names.unique().drop_null(), value_set=names)
            columns = [pc.list_flatten(self._column(f"{medium}_{name}").take(rows)).take(first) for name in CONTENT]
            found.append(pa.table(columns, schema=CONTENT.arrow_schema))
        return pa.concat_tables(found)

    def ids_and_reasons(self, rows: Iterable[int]) -> list[tuple[str | None, str | None]]:
        """Returns of each row its id and what is wrong with it. Both may be None."""
        found = self._marks[list(rows)]
        return list(zip(found["id"], found["reason"], strict=True))

    def _column(self, name: str) -> pa.ChunkedArray:
        return self._table.data.table[name]

    @cached_property
    def _rows(self) -> SourceRows:
        return open_source(self.source)


def _sides(medium: Medium) -> list[str]:
    """Returns the columns of the sizes of a medium's files."""
    return [f"{medium}_{side}" for side in READERS[medium].sides]


def open_indexes(sources: Sequence[Source], paths: Sequence[Path]) -> list[Index]:
    """Returns the index of each source, by its path."""
    return [Index(path, source) for source, path in zip(sources, paths, strict=True)]
