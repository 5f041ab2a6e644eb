"""What a benchmark is: its questions, how an answer to one is judged, and the metrics of all answers.

Metrics are functions of sums over units. A unit is what is drawn at random to know how sure a metric is: the questions
about one picture, or the copies of one question. So the same code gives a metric, and the interval of its bootstrap.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from data.benchmarks.place import Place, StoredPicture
from data.sample import EmbeddedFile, Sample

Style = Literal["llava", "lmms"]
"""Whose prompts are asked: those of LLaVA-1.5's own evaluation, or those of lmms-eval."""

OF_ALL = "accuracy"
"""The metric of all questions, where a benchmark's metrics are mean scores."""

Totals = Mapping[str, np.ndarray]
"""Name of what is counted -> its sum over units. Sums of several resamplings stand in one array."""


@dataclass(frozen=True)
class Question:
    """One question of a benchmark.

    Attributes:
        id: its id in the benchmark's files. Some benchmarks use an id several times.
        text: what the model is asked. Each `<image>` mark stands for the next picture.
        images: its pictures.
        answers: the true answers, as the files give them. Empty where they are not published.
        unit: questions with the same unit are about one picture, or copies of one question.
        group: the part of the benchmark that it belongs to, where parts have metrics of their own, such as a split.
        family: what plots and tables of accuracy show it under; None for the benchmark's name.
        earlier: (question, answer) pairs that stand before it.
        choices: the text of each option, by its letter.
        details: what a submission needs beside.
        videos: its videos. Each `<video>` mark in the text stands for the next one.
    """

    id: str
    text: str
    images: tuple[Path | EmbeddedFile | StoredPicture, ...]
    answers: tuple[str, ...]
    unit: str
    group: str = ""
    family: str | None = None
    earlier: tuple[tuple[str, str], ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    videos: tuple[Path | EmbeddedFile, ...] = ()

    def sample(self) -> Sample:
        """Returns it as a conversation whose last answer is to be generated. Stored pictures are read."""
        images = tuple(image.read() if isinstance(image, StoredPicture) else image for image in self.images)
        turns = (*self.earlier, (self.text, self.answers[0] if self.answers else ""))
        return Sample(self.id, images, turns, videos=self.videos)


class Judgement(NamedTuple):
    """What is thought of one answer.

    Attributes:
        score: 1 where it is right, 0 where it is wrong, between them where it is partly right. Some metrics exceed 1.
        said: what was understood, such as a letter or "yes"; None where the answer says none of what is allowed.
    """

    score: float
    said: str | None


@dataclass(frozen=True)
class Record:
    """One question with a model's answer to it. JSON holds it as it is.

    Attributes:
        benchmark: name of the benchmark.
        id, group, unit, answers: as in `Question`.
        family: the question's, or the benchmark's name.
        question: its text.
        prediction: the model's answer.
        said: as in `Judgement`.
        score: as in `Judgement`; None where the true answer is not published.
        image: the file of its first picture; None if there is no picture, or it lies within its row.
    """

    benchmark: str
    id: str
    family: str
    group: str
    unit: str
    question: str
    answers: tuple[str, ...]
    prediction: str
    said: str | None
    score: float | None
    image: str | None


class Benchmark(ABC):
    """A benchmark. It holds no state: what is read belongs to whoever asked for it.

    Attributes:
        name: what recipes and commands call it.
        title: what tables call it.
        folders: names of its folder within a folder of benchmarks, in LLaVA's layout and on the Hub.
        max_new_tokens: the longest answer in tokens, for each style of prompts. None where it is taken from the longest
            true answer of each family.
        best: the largest value of its first metric, or what counts as 100 % where there is no largest.
        numeric_ids: whether LLaVA's files give its ids as numbers.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    folders: ClassVar[tuple[str, ...]]
    max_new_tokens: ClassVar[Mapping[Style, int] | None]
    best: ClassVar[float] = 100.0
    numeric_ids: ClassVar[bool] = False

    @abstractmethod
    def questions(self, place: Place, style: Style) -> list[Question]:
        """Returns all questions, in the order of the files. No picture is opened.

        Raises:
            UserError: a file, a column or a picture is missing. The message says what is there.
        """

    @abstractmethod
    def judge(self, question: Question, prediction: str) -> Judgement:
        """Returns what is thought of an answer to a question whose true answers are known."""

    def tally(self, unit: Sequence[Record]) -> dict[str, float]:
        """Returns what the answers of one unit add to each sum.

        By default these are the scores and their number, of all records and of each group.
        """
        counted: dict[str, float] = defaultdict(float)
        for record in unit:
            for name in ("all", record.group) if record.group else ("all",):
                counted[f"{name} score"] += record.score or 0.0
                counted[f"{name} count"] += 1
        return counted

    def metrics(self, totals: Totals) -> dict[str, np.ndarray]:
        """Returns the benchmark's metrics, in the units in which papers print them. The first is the one that counts.

        By default it is the mean score in %, of all questions and of each group.
        """
        groups = [name.removesuffix(" count") for name in totals if name.endswith(" count")]
        return {
            OF_ALL if group == "all" else group: ratio(totals[f"{group} score"], totals[f"{group} count"])
            for group in sorted(groups, key=lambda group: group != "all")
        }

    @property
    def has_submission(self) -> bool:
        """Whether there are files for its own scorer or server."""
        return type(self).submission is not Benchmark.submission

    def submission(self, records: Sequence[Record], place: Place) -> dict[str, str]:
        """Returns the files that the benchmark's own scorer or server takes: name of each -> its text.

        A benchmark that does not say so has none: its scorer takes the answer files that every benchmark has.

        Args:
            records: a model's answers to all questions, in their order.
            place: where the questions were read.

        Raises:
            UserError: a file that it needs is not there, whatever the answers.
        """
        return {}


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Returns `part` as a percentage of `whole`; 0 where both are 0."""
    return 100 * np.divide(part, whole, out=np.zeros_like(part, dtype=float), where=whole != 0)


def units_of(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Returns the records of each unit, units in the order of their first records."""
    units: dict[str, list[Record]] = {}
    for record in records:
        units.setdefault(record.unit, []).append(record)
    return units
