"""Reads and encodes the rows of an index."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features, List
from transformers import ProcessorMixin

from data.index.batch_encoding import BatchEncoder
from data.index.index import FEATURES
from data.index.look import LOOKED_AT, Look
from data.index.worker import as_table, begin_worker
from data.sample import MEDIA, Medium, Sample
from data.sources.rows import SourceRows
from modeling.user_error import UserError

READ = Features(
    {
        **{name: feature for name, feature in FEATURES.items() if name != "length"},
        # What was found of embedded files, and nothing of others, in the order of `image` and `video`.
        **{f"{medium}_{name}": List(feature) for medium in MEDIA for name, feature in LOOKED_AT.items()},
    }
)

_EMPTY: dict[str, Any] = {
    **{name: [] if isinstance(feature, List) else None for name, feature in READ.items()},
    "supervised": 0,
    "digest": 0,
    "filtered": False,
}
"""A row of which nothing is known. Its lists are not changed."""


class ReadRows:
    """Reads and encodes rows of a source. Of their pictures and videos it looks at those alone that are embedded."""

    def __init__(self, rows: SourceRows, processor: ProcessorMixin, look: Mapping[Medium, Look]):
        self._rows, self._look, self._encode = rows, look, BatchEncoder(processor)

    def __call__(self, batch: dict[str, list], numbers: list[int]) -> pa.Table:
        """Reads a batch of rows with these numbers."""
        begin_worker()
        found: list[dict[str, Any]] = []
        samples: dict[int, Sample] = {}
        for place, number in enumerate(numbers):
            row = {name: values[place] for name, values in batch.items()}
            found.append(_EMPTY.copy())
            try:
                sample = self._rows.sample(row, number)
            except UserError as error:
                found[-1] |= {"id": self._rows.id_of(row), "reason": str(error)}
            else:
                if sample is None:
                    found[-1] |= {"id": self._rows.id_of(row), "filtered": True}
                else:
                    samples[place] = sample
        encoded = self._encode(list(samples.values()))
        for (place, sample), text in zip(samples.items(), encoded, strict=True):
            found[place] |= self._described(sample)
            if isinstance(text, UserError):
                found[place]["reason"] = str(text)
            else:
                padded = np.zeros(len(text.supervised) + 2, dtype=bool)
                padded[1:-1] = text.supervised
                found[place] |= {
                    "input_ids": text.input_ids,
                    "spans": np.flatnonzero(padded[1:] != padded[:-1]).astype(np.int32),
                    "supervised": int(text.supervised.sum()),
                }
        return as_table(found, READ)

    def _described(self, sample: Sample) -> dict[str, Any]:
        """Returns a sample's columns, but for those of its text's tokens."""
        shown: dict[str, list[Any]] = {}
        unseen = dict.fromkeys(LOOKED_AT)
        for medium in MEDIA:
            files = sample.files(medium)
            if not files:  # as in most rows of most media
                continue
            looked_at = [unseen if isinstance(file, Path) else self._look[medium].at(file) for file in files]
            shown[medium] = [str(file) if isinstance(file, Path) else None for file in files]
            shown |= {f"{medium}_{name}": [one[name] for one in looked_at] for name in LOOKED_AT}
        return {
            "id": sample.id,
            "family": sample.family,
            "system": sample.system,
            "questions": [question for question, _ in sample.turns],
            "answers": [answer for _, answer in sample.turns],
            **shown,
            "digest": _digest(sample),
        }


def _digest(sample: Sample) -> int:
    """Returns a number of 64 bits that equal samples share."""
    files = [
        str(file) if isinstance(file, Path) else hashlib.sha256(file.data).hexdigest()
        for medium in MEDIA
        for file in sample.files(medium)
    ]
    said = json.dumps([sample.id, files, sample.turns, sample.family, sample.system])
    return int.from_bytes(hashlib.blake2b(said.encode(), digest_size=8).digest(), "big", signed=True)
