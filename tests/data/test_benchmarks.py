"""Scores of answers about the embedded world."""

import pytest

from data.benchmarks.shapes import clauses, score
from data.shapes.questions import QUESTION_FAMILIES
from modeling.user_error import UserError


@pytest.mark.parametrize("family", ["attribute", "relation", "reading", "choice"])
@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("red", "red", 1.0),
        (" Red. ", "red", 1.0),
        ("light  blue", "light blue", 1.0),
        ("redder", "red", 0.0),
        ("red blue", "red", 0.0),
        ("", "red", 0.0),
    ],
)
def test_short_answers_match_exactly_or_not_at_all(family, prediction, answer, expected):
    assert score(family, prediction, answer) == expected


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [("yes", "yes", 1.0), ("No.", "no", 1.0), ("no", "yes", 0.0), ("maybe", "no", 0.0), ("yes no", "yes", 0.0)],
)
def test_existence_is_yes_or_no(prediction, answer, expected):
    assert score("existence", prediction, answer) == expected


def test_existence_refuses_another_truth():
    with pytest.raises(UserError, match="existence is 'perhaps', allowed: yes, no"):
        score("existence", "perhaps", "perhaps")


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("a red cross at the top, a blue disc on the left and a sandy bar", 2 / 3),
        ("a sand pit and a red cross at the top, a blue disc on the left.", 1.0),
        ("a red cross at the top", 2 / 4),
        ("a red cross at the top, a red cross at the top", 2 / 4),
        ("a red cross at the left", 0.0),
        ("", 0.0),
    ],
)
def test_captions_are_scored_by_clauses(prediction, expected):
    truth = "a red cross at the top, a blue disc on the left, and a sand pit"
    assert score("caption", prediction, truth) == pytest.approx(expected)


def test_and_inside_a_word_does_not_split():
    assert clauses("a sand pit and a brandy") == {"a sand pit", "a brandy"}


def test_a_caption_needs_a_true_clause():
    with pytest.raises(UserError, match="without a clause"):
        score("caption", "a red cross", " , .")


def test_unknown_family_is_refused_by_name():
    with pytest.raises(UserError, match="'poetry' has no metric, allowed: existence"):
        score("poetry", "red", "red")


def test_every_family_has_a_metric():
    truths = dict.fromkeys(QUESTION_FAMILIES, "red") | {"existence": "yes"}
    assert {family: score(family, truths[family], truths[family]) for family in QUESTION_FAMILIES} == dict.fromkeys(
        QUESTION_FAMILIES, 1.0
    )
