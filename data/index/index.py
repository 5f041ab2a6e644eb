"""The index of a source: an Arrow file with one row for each of the source's, read, checked and encoded.

It is made once (data/index/build.py). Every process maps it into its memory, so that none holds an object per row.
Bad rows and rows that a filter leaves out stay in it, marked, so that numbers of rows are those of the source.
"""

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset, Features, List, Value

from data.conversations import IGNORE_INDEX
from data.sample import EmbeddedPicture, Sample
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
        # Paths start from the source's folder of pictures. A picture that is embedded in its row has none.
        "pictures": List(Value("string")),
        "heights": List(Value("int32")),
        "widths": List(Value("int32")),
        # The text, with one placeholder per picture, and the tokens [start, end) of each answer, one after another.
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
        has_picture: whether a row has a picture, [rows] bool.
        digests: equal for equal samples, [rows] int64.
        is_filtered: whether the source's filters leave a row out, [rows] bool.
        is_bad: whether something is wrong with a row, [rows] bool.
    """

    def __init__(self, path: Path, source: Source):
        self.path, self.source = path, source
        self.name = str(source.path or source.hub)
        self._table = Dataset.from_file(str(path))
        self._image_root = os.path.realpath(source.images or ".")  # without pictures by path it is not used
        self._marks = self._table.select_columns(["id", "reason"])
        table = self._table.data.table
        self.lengths: np.ndarray = table["length"].to_numpy()
        self.supervised: np.ndarray = table["supervised"].to_numpy()
        self.digests: np.ndarray = table["digest"].to_numpy()
        self.is_filtered: np.ndarray = table["filtered"].to_numpy()
        self.is_bad: np.ndarray = pc.is_valid(table["reason"]).to_numpy()
        self.has_picture: np.ndarray = pc.list_value_length(table["pictures"]).to_numpy() > 0

    def __len__(self) -> int:
        return len(self._table)

    @property
    def is_good(self) -> np.ndarray:
        """Whether a row is a sample, however long, [rows] bool."""
        return ~(self.is_bad | self.is_filtered)

    def sample(self, row: int) -> Sample:
        """Returns a good row as a sample. Pictures that are embedded are read from the source."""
        found = self._table[row]
        return Sample(
            found["id"],
            self._pictures(row, found["pictures"]),
            tuple(zip(found["questions"], found["answers"], strict=True)),
            found["family"],
            found["system"],
        )

    def tokens(self, row: int) -> dict[str, torch.Tensor]:
        """Returns what `data.conversations.encode_text` gives for a good row."""
        found = self._table[row]
        input_ids = torch.tensor(found["input_ids"], dtype=torch.int32)
        labels = torch.full_like(input_ids, IGNORE_INDEX)
        for start, end in zip(found["spans"][::2], found["spans"][1::2], strict=True):
            labels[start:end] = input_ids[start:end]
        return {"input_ids": input_ids, "labels": labels}

    def sizes(self, row: int) -> list[tuple[int, int]]:
        """Returns (height, width) of each picture of a good row, in pixels."""
        found = self._table[row]
        return list(zip(found["heights"], found["widths"], strict=True))

    def sizes_of(self, rows: np.ndarray) -> np.ndarray:
        """Returns (height, width) of all pictures of rows, [pictures, 2] int32, in pixels."""
        columns = [
            pc.list_flatten(self._table.data.table[name].take(rows)).to_numpy() for name in ("heights", "widths")
        ]
        return np.stack(columns, axis=1)

    def picture_files(self, rows: np.ndarray) -> list[Path]:
        """Returns the file of each picture of rows, each once. Those that are embedded in their rows have none."""
        names = pc.list_flatten(self._table.data.table["pictures"].take(rows)).unique().drop_null()
        return [Path(self._image_root, name) for name in names.to_pylist()]

    def ids_and_reasons(self, rows: Iterable[int]) -> list[tuple[str | None, str | None]]:
        """Returns of each row its id and what is wrong with it. Both may be None."""
        found = self._marks[list(rows)]
        return list(zip(found["id"], found["reason"], strict=True))

    def _pictures(self, row: int, names: list[str | None]) -> tuple[Path | EmbeddedPicture, ...]:
        if None in names:
            sample = self._rows.sample(self._rows.table[row], row)
            assert sample is not None, "the source's filters left out another row when the index was made"
            return sample.images
        return tuple(Path(self._image_root, name or "") for name in names)

    @cached_property
    def _rows(self) -> SourceRows:
        return open_source(self.source)


def open_indexes(sources: Sequence[Source], paths: Sequence[Path]) -> list[Index]:
    """Returns the index of each source, by its path."""
    return [Index(path, source) for source, path in zip(sources, paths, strict=True)]
