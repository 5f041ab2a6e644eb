"""How far one comes in the world of pasted things without looking: what a score must be compared with.

The blind answer to a question is the commonest one, in what is trained on, to questions of the same form: with names,
places and kinds of things left out. Where the question names two things, and asks which of them, blind is a guess.
"""

import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.benchmarks.shapes import score
from data.pasted.parts.names import CATEGORIES
from data.pasted.scenes import PLACES

_EITHER = "larger"  # the family whose questions name both answers, things as they are


def blind_scores(train: Path, asked: Path) -> dict[str, float]:
    """Returns the blind score of each family of questions, in [0, 1].

    Args:
        train: a split that is trained on, a row for each picture.
        asked: a split that is asked, a row for each question.
    """
    trained, rows = (pq.read_table(path, columns=["conversations", "families", "things"]) for path in (train, asked))
    names = {thing["name"] for table in (trained, rows) for things in table["things"].to_pylist() for thing in things}
    form = _Form(names)
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question, answer, _ in _turns(trained):
        answers[form(question)][answer] += 1
    scores: defaultdict[str, list[float]] = defaultdict(list)
    for question, answer, family in _turns(rows):
        commonest = answers[form(question)].most_common(1)
        guess = commonest[0][0] if commonest else ""
        scores[family].append(0.5 if family == _EITHER else score(family, guess, answer))
    return {family: float(np.mean(values)) for family, values in scores.items()}


class _Form:
    """Takes names, places and kinds of things out of a question."""

    def __init__(self, names: set[str]):
        words = {**dict.fromkeys(CATEGORIES, "KIND"), **dict.fromkeys(PLACES, "PLACE"), **dict.fromkeys(names, "NAME")}
        longest_first = sorted(map(re.escape, words), key=len, reverse=True)
        self._words, self._pattern = words, re.compile(rf"\b(?:an? )?({'|'.join(longest_first)})\b")

    def __call__(self, question: str) -> str:
        return self._pattern.sub(lambda found: self._words[found[1]], question)


def _turns(table: pa.Table) -> list[tuple[str, str, str]]:
    """Returns question, answer and family of each turn of a split's rows."""
    turns: list[tuple[str, str, str]] = []
    for messages, families in zip(table["conversations"].to_pylist(), table["families"].to_pylist(), strict=True):
        texts = [message["value"].removeprefix("<image>\n") for message in messages]
        turns += zip(texts[::2], texts[1::2], families, strict=True)
    return turns
