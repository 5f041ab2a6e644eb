"""How an answer about the embedded world is scored, family by family.

Five families ask for one short answer and are scored by exact match after `normalise`: `existence` (after
POPE, arXiv 2305.10355; its metric here is plain accuracy, and an answer is yes or no or it is wrong),
`attribute` (VQAv2), `relation` (GQA), `reading` (TextVQA) and `choice` (MMBench). `caption` is scored by
how well its clauses cover the true ones and nothing else: F1 over the two sets of clauses.

Scores are in [0, 1]; the accuracy of a model is their mean.
"""

import re

from data.shapes.questions import QUESTION_FAMILIES
from modeling.user_error import UserError


def score(family: str, prediction: str, answer: str) -> float:
    """The score of one generated answer, in [0, 1].

    Raises:
        UserError: the family is unknown, or the true answer is not one its family allows.
    """
    if family not in QUESTION_FAMILIES:
        raise UserError(f"family {family!r} has no metric, allowed: {', '.join(QUESTION_FAMILIES)}")
    if family == "caption":
        return clause_f1(prediction, answer)
    if family == "existence" and normalise(answer) not in ("yes", "no"):
        raise UserError(f"a true answer of family existence is {answer!r}, allowed: yes, no")
    return float(normalise(prediction) == normalise(answer))


def normalise(text: str) -> str:
    """Lower case, single spaces, no punctuation or space around the whole."""
    return " ".join(text.lower().split()).strip(" .,;:!?\"'")


def clauses(caption: str) -> frozenset[str]:
    """The clauses of a caption: what stands between commas, full stops and the word "and"."""
    parts = (normalise(part) for part in re.split(r"[,.;]|\band\b", caption.lower()))
    return frozenset(part for part in parts if part)


def clause_f1(prediction: str, answer: str) -> float:
    """F1 over sets of clauses: 2·|both| / (|predicted| + |true|), in [0, 1].

    Raises:
        UserError: the true caption has no clause.
    """
    predicted, true = clauses(prediction), clauses(answer)
    if not true:
        raise UserError(f"a true caption without a clause: {answer!r}")
    return 2 * len(predicted & true) / (len(predicted) + len(true))
