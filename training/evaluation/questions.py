"""The questions that models are asked: those of benchmarks, and rows of one's own that name their family."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from data.benchmarks.benchmark import Benchmark, Question, Style
from data.benchmarks.place import Place
from data.benchmarks.registry import BENCHMARKS
from data.benchmarks.shapes import question_of
from data.sample import Sample
from modeling.user_error import UserError
from training.recipe.data import BenchmarkSettings


class Asked(NamedTuple):
    """A benchmark, and those of its questions that are asked.

    Attributes:
        benchmark: the benchmark.
        questions: its questions, in the order of its files.
        style: whose prompts they have.
        place: where they were read; None for rows of one's own.
    """

    benchmark: Benchmark
    questions: Sequence[Question]
    style: Style = "llava"
    place: Place | None = None


def asked_of(samples: Iterable[Sample]) -> Asked:
    """Returns the last questions of samples that name their families. Raises UserError where one does not."""
    return Asked(BENCHMARKS["shapes"], [question_of(sample) for sample in samples])


def read_benchmarks(settings: BenchmarkSettings) -> list[Asked]:
    """Returns the questions of every benchmark that the settings name. No picture is opened.

    Raises:
        UserError: a benchmark's files are missing, or are not what they must be.
    """
    found = []
    for name in settings.benchmarks:
        benchmark, place = BENCHMARKS[name], _place(settings, name)
        questions = benchmark.questions(place, settings.prompts)
        if not questions:
            raise UserError(f"{place}: has no questions of {name}")
        found.append(Asked(benchmark, limited(questions, settings.num_questions), settings.prompts, place))
    return found


def limited(questions: Sequence[Question], count: int | None) -> Sequence[Question]:
    """Returns the first questions, at least `count` of them if there are so many. No unit is taken in part."""
    if count is None:
        return questions
    units: dict[str, list[Question]] = {}
    for question in questions:
        units.setdefault(question.unit, []).append(question)
    chosen: set[str] = set()
    taken = 0
    for unit, members in units.items():
        if taken >= count:
            break
        chosen.add(unit)
        taken += len(members)
    return [question for question in questions if question.unit in chosen]


def digest(asked: Sequence[Asked]) -> str:
    """Returns a hash of all questions, by which kept answers know what they answer."""
    found = hashlib.sha256()
    for benchmark, questions, style, _ in asked:
        for question in questions:
            said = [benchmark.name, style, question.id, question.text, question.answers, question.earlier]
            found.update(json.dumps([*said, [str(file) for file in (*question.images, *question.videos)]]).encode())
    return found.hexdigest()


def _place(settings: BenchmarkSettings, name: str) -> Place:
    """Returns where a benchmark lies."""
    folders = BENCHMARKS[name].folders
    if settings.hub is not None:
        owner, at, revision = settings.hub.partition("@")
        return Place(hub=f"{owner}/{folders[-1]}{at}{revision}")
    assert settings.path is not None
    for folder in folders:
        if (settings.path / folder).is_dir():
            return Place(path=settings.path / folder)
    raise UserError(
        f"{name}: {settings.path} has no folder {' or '.join(dict.fromkeys(folders))}, which the benchmark is read from"
    )
