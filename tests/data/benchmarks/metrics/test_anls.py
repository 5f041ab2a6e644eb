"""ANLS against its definition."""

import random
from functools import lru_cache

import pytest

from data.benchmarks.metrics.anls import anls, edit_distance


def distance_by_definition(one: str, other: str) -> int:
    """The edit distance, by the recursion that defines it."""

    @lru_cache(None)
    def between(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        return min(between(i - 1, j) + 1, between(i, j - 1) + 1, between(i - 1, j - 1) + (one[i - 1] != other[j - 1]))

    return between(len(one), len(other))


def anls_by_definition(prediction: str, answers: list[str]) -> float:
    scores = []
    for answer in answers:
        one, other = " ".join(prediction.lower().split()), " ".join(answer.lower().split())
        normalised = distance_by_definition(one, other) / max(len(one), len(other), 1)
        scores.append(1 - normalised if 1 - normalised >= 0.5 else 0.0)
    return max(scores)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("ab", "ba", 2)],
)
def test_edit_distances_worked_by_hand(one, other, expected):
    assert edit_distance(one, other) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("P. Carter", ["p. carter"], 1.0),
        ("  P.   Carter\n", ["P. Carter"], 1.0),
        ("abcde", ["abcdf"], 0.8),
        ("abcde", ["zzzzz", "abcdf"], 0.8),  # the most similar answer counts
        ("abxx", ["abcd"], 0.5),  # at the threshold it counts
        ("abxxx", ["abcde"], 0.0),  # 0.4 is below it
        ("12", ["1", "13"], 0.5),
        ("", ["3"], 0.0),
        ("a", ["abc"], 0.0),
        ("1/8/93.", ["1/8/93"], 6 / 7),  # punctuation counts
        ("12", [], 0.0),
    ],
)
def test_similarities_worked_by_hand(prediction, answers, expected):
    assert anls(prediction, answers) == pytest.approx(expected)


def test_random_texts_score_as_defined():
    source = random.Random(0)
    texts = ["".join(source.choices("ab ", k=source.randint(0, 9))) for _ in range(900)]
    scores = [
        (anls(one, [a, b]), anls_by_definition(one, [a, b])) for one, a, b in zip(*[iter(texts)] * 3, strict=True)
    ]
    assert [found for found, _ in scores] == pytest.approx([expected for _, expected in scores])
    assert len({round(expected, 3) for _, expected in scores}) > 5, "the texts tell scores apart"


def test_a_long_answer_is_scored_at_once():
    assert anls("word " * 100_000, ["word"]) == 0.0  # no matrix of half a million times four is filled
