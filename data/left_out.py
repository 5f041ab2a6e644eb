"""Which rows of a mixture's sources are not used, and why."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from data.index.index import Index
from data.sample import OnBadSample
from modeling.user_error import UserError

FILTERED = "left out by the source's filters"
MAX_LISTED = 1_000
"""Rows that a report lists. All are counted."""
_DETAIL = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\([^()]*\)|\d+(?:\.\d+)?")
"""What differs between two reasons of one kind: what is quoted or in parentheses, and numbers."""


@dataclass(frozen=True)
class LeftOut:
    """The rows of a mixture that are not used.

    Attributes:
        indexes: the indexes of the mixture's sources.
        too_long: for each sample with too many tokens, which of `indexes` it is in, and its row there,
            [samples, 2] int32.
        max_length: the most tokens that a sample may have.
    """

    indexes: Sequence[Index]
    too_long: np.ndarray
    max_length: int

    def counts(self) -> dict[str, int]:
        """Returns how many rows are left out for each kind of reason. Each copy of a sample that is too long counts."""
        counts = Counter(kind_of(reason) for _, _, _, reason in self._bad())
        filtered = int(sum(index.is_filtered.sum() for index in _distinct(self.indexes)))
        found = {FILTERED: filtered, self._too_long_kind(): len(self.too_long), **counts}
        return {kind: count for kind, count in found.items() if count}

    def rows(self) -> list[dict]:
        """Returns the first rows that are bad or too long: source, number of the row, id and reason of each."""
        listed = islice(chain(self._bad(), self._too_long()), MAX_LISTED)
        return [dict(zip(("source", "row", "id", "reason"), row, strict=True)) for row in listed]

    def check_too_long(self, max_too_long_share: float, num_samples: int) -> None:
        """Raises UserError where more samples of `num_samples` are too long than are allowed."""
        if len(self.too_long) > max_too_long_share * num_samples:
            name, row, row_id, reason = next(self._too_long())
            raise UserError(
                f"{len(self.too_long)} of {num_samples} samples have more than {self.max_length} tokens, at most a "
                f"share of {max_too_long_share} is allowed; the first: {name}: row {row} (id {row_id!r}): {reason}"
            )

    def _bad(self) -> Iterator[tuple[str, int, str | None, str]]:
        for index in _distinct(self.indexes):
            yield from _bad_rows(index)

    def _too_long(self) -> Iterator[tuple[str, int, str | None, str]]:
        lengths = [index.lengths for index in self.indexes]
        for number, row in self.too_long.tolist():
            index = self.indexes[number]
            ((row_id, _),) = index.ids_and_reasons([row])
            yield index.name, row, row_id, f"{lengths[number][row]} tokens, at most {self.max_length} are allowed"

    def _too_long_kind(self) -> str:
        return f"more than {self.max_length} tokens"


def kind_of(reason: str) -> str:
    """Returns a reason without what differs between two reasons of one kind."""
    return _DETAIL.sub("…", reason)


def kinds_of_bad(index: Index) -> list[tuple[str, int, str]]:
    """Returns each kind of reason for which rows are bad, their number and the first. The most frequent comes first."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for _, row, row_id, reason in _bad_rows(index):
        counts[kind_of(reason)] += 1
        first.setdefault(kind_of(reason), f"row {row} (id {row_id!r}): {reason}")
    return [(kind, count, first[kind]) for kind, count in counts.most_common()]


def check_bad(indexes: Sequence[Index], on_bad_sample: OnBadSample, max_bad_share: float) -> None:
    """Raises UserError where a source has a bad row, or with `on_bad_sample: skip` a larger share than is allowed."""
    allowed = 0.0 if on_bad_sample == "error" else max_bad_share
    for index in _distinct(indexes):
        bad, rows = int(index.is_bad.sum()), len(index) - int(index.is_filtered.sum())
        if bad > allowed * rows:
            name, row, row_id, reason = next(_bad_rows(index))
            raise UserError(
                f"{bad} of {rows} samples are bad, at most a share of {allowed} is allowed; "
                f"the first: {name}: row {row} (id {row_id!r}): {reason}"
            )


def _distinct(indexes: Sequence[Index]) -> list[Index]:
    """Returns the indexes, each once. A mixture may draw from a source several times."""
    return list({index.path: index for index in indexes}.values())


def _bad_rows(index: Index) -> Iterator[tuple[str, int, str | None, str]]:
    """Yields the source's name, number, id and reason of each bad row."""
    rows = np.flatnonzero(index.is_bad).tolist()
    for row, (row_id, reason) in zip(rows, index.ids_and_reasons(rows), strict=True):
        assert reason is not None
        yield index.name, row, row_id, reason
