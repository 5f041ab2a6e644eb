"""Scores answers about the embedded world and pasted things, by a metric for each family of questions.

Of the embedded world, five families ask for one short answer and are scored by exact match after `normalise`:
`existence` (POPE, arXiv 2305.10355), `attribute` (VQAv2), `relation` (GQA), `reading` (TextVQA) and `choice` (MMBench).
So are those of pasted things (data/pasted/questions.py). For `existence` this is plain accuracy, and any answer but yes
or no is wrong. `caption` and `list` are scored by F1 over two sets of clauses, those of the answer and those of the
true one.

A score is in [0, 1]. The accuracy of a model is the mean of its scores.
"""

import re
from hashlib import sha256

from data.benchmarks.benchmark import Benchmark, Judgement, Question, Style
from data.benchmarks.place import Place
from data.pasted.questions import FAMILIES as PASTED_FAMILIES
from data.sample import EmbeddedFile, Sample
from data.shapes.questions import QUESTION_FAMILIES
from data.sources.reading import load_samples
from data.sources.source import Source
from modeling.user_error import UserError

FAMILIES = tuple(dict.fromkeys((*QUESTION_FAMILIES, *PASTED_FAMILIES)))
"""The families that have a metric."""


class Shapes(Benchmark):
    """Questions about the embedded world, or rows of one's own that name their family."""

    name = "shapes"
    title = "shapes"
    folders = ("shapes",)
    max_new_tokens = None

    def questions(self, place: Place, style: Style) -> list[Question]:
        samples, _ = load_samples(Source(path=place.needed_file("test.json"), images=place.path))
        return [question_of(sample) for sample in samples]

    def judge(self, question: Question, prediction: str) -> Judgement:
        return Judgement(score(question.family or "", prediction, question.answers[0]), normalise(prediction))


def question_of(sample: Sample) -> Question:
    """Returns the last question of a sample that names its family. The turns before it stand before it.

    Raises:
        UserError: it names none, or one that has no metric.
    """
    if sample.family not in FAMILIES:
        raise UserError(
            f"sample {sample.id}: got family {sample.family!r}, allowed: {', '.join(FAMILIES)} "
            "(the family says how an answer is scored)"
        )
    *earlier, (question, answer) = sample.turns
    return Question(
        id=sample.id,
        text=question,
        images=sample.images,
        videos=sample.videos,
        answers=(answer,),
        unit=_unit(sample),
        group=sample.family,
        family=sample.family,
        earlier=tuple(earlier),
    )


def _unit(sample: Sample) -> str:
    """Returns what tells the pictures within a row from others, or the row's id if it has none within it."""
    files = [file for file in (*sample.images, *sample.videos) if isinstance(file, EmbeddedFile)]
    return " ".join(sha256(file.data).hexdigest() for file in files) or sample.id


def score(family: str, prediction: str, answer: str) -> float:
    """Returns the score of one generated answer, in [0, 1].

    Args:
        family: one of FAMILIES.
        prediction: the generated answer.
        answer: the true answer.

    Raises:
        UserError: the family is unknown, or the true answer is not one that the family allows.
    """
    if family not in FAMILIES:
        raise UserError(f"family {family!r} has no metric, allowed: {', '.join(FAMILIES)}")
    if family in ("caption", "list"):
        return clause_f1(prediction, answer)
    if family == "existence" and normalise(answer) not in ("yes", "no"):
        raise UserError(f"a true answer of family existence is {answer!r}, allowed: yes, no")
    return float(normalise(prediction) == normalise(answer))


def normalise(text: str) -> str:
    """Returns a text in lower case, with single spaces, and without punctuation or spaces around it."""
    return " ".join(text.lower().split()).strip(" .,;:!?\"'")


def clauses(caption: str) -> frozenset[str]:
    """Returns the clauses of a caption: what stands between commas, semicolons, full stops and the word "and"."""
    parts = (normalise(part) for part in re.split(r"[,.;]|\band\b", caption.lower()))
    return frozenset(part for part in parts if part)


def clause_f1(prediction: str, answer: str) -> float:
    """Returns F1 over sets of clauses, 2·|both| / (|predicted| + |true|), in [0, 1].

    Raises:
        UserError: the true caption has no clause.
    """
    predicted, true = clauses(prediction), clauses(answer)
    if not true:
        raise UserError(f"a true caption without a clause: {answer!r}")
    return 2 * len(predicted & true) / (len(predicted) + len(true))
