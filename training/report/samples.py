"""The answers that the report shows: which questions are chosen, and what is shown of each."""

from collections.abc import Sequence
from pathlib import Path

from data.benchmarks.benchmark import Record
from training.report.data_uris import thumbnail_uri

NUM_SAMPLES = 12
"""How many questions are shown."""
OWN_ROWS = "shapes"
"""The benchmark by which rows of one's own are scored (training/evaluation/questions.py)."""


def own_answers(records: Sequence[Record], recipe: dict) -> list[Record]:
    """Returns the answers to rows of one's own, if a resolved recipe asks any; else all answers."""
    asks_rows = any("benchmarks" not in entry for entry in recipe["data"]["evaluation"])
    return [record for record in records if not asks_rows or record.benchmark == OWN_ROWS]


def choose_samples(dense: Sequence[Record], student: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Returns pairs of answers to the same question, up to `NUM_SAMPLES` of them.

    In half of the pairs both models are right. If one half has too few pairs, the other half gets more. Each half has
    as many families of questions as possible.

    Args:
        dense: the dense model's answers.
        student: the student's answers to the same questions, in the same order.
    """
    pairs = list(zip(dense, student, strict=True))
    assert all(one.id == other.id for one, other in pairs)
    right = _in_turns([pair for pair in pairs if is_right(pair[0]) and is_right(pair[1])])
    wrong = _in_turns([pair for pair in pairs if not (is_right(pair[0]) and is_right(pair[1]))])
    num_wrong = min(len(wrong), max(NUM_SAMPLES // 2, NUM_SAMPLES - len(right)))
    return right[: NUM_SAMPLES - num_wrong] + wrong[:num_wrong]


def _in_turns(pairs: list[tuple[Record, Record]]) -> list[tuple[Record, Record]]:
    """Returns the pairs in an order in which the families of questions take turns."""
    seen: dict[str, int] = {}
    turns = []
    for pair in pairs:
        family = pair[0].family
        seen[family] = seen.get(family, 0) + 1
        turns.append(seen[family])
    return [pair for _, pair in sorted(zip(turns, pairs, strict=True), key=lambda numbered: numbered[0])]


def is_right(record: Record) -> bool:
    """Returns whether the answer is entirely right. A caption that leaves something out is not."""
    return record.score == 1.0


def sample_card(dense: Record, student: Record) -> dict:
    """Returns what the page shows of one question.

    Args:
        dense: the dense model's answer.
        student: the student's answer to the same question.

    Raises:
        UserError: the picture cannot be opened.
    """
    return {
        "picture": None if dense.image is None else thumbnail_uri(Path(dense.image)),
        "question": dense.question.replace("<image>", "").replace("<video>", "").strip(),
        "answer": ", ".join(dict.fromkeys(dense.answers)) or "not published",
        "answers": [("dense", dense, is_right(dense)), ("student", student, is_right(student))],
    }
