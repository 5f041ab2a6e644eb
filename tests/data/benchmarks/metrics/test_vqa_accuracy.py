"""The soft accuracy of VQA and its normaliser, against hand-worked cases and the definition."""

import random

import pytest

from data.benchmarks.metrics.vqa_accuracy import check_answers, normalise, vqa_accuracy
from modeling.user_error import UserError


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        # case, spaces and lines
        ("  Red ", "red"),
        ("light\nblue\tsky", "light blue sky"),
        ("", ""),
        # numerals, up to ten, and "none"
        ("Two", "2"),
        ("none", "0"),
        ("zero", "0"),
        ("ten of eleven", "10 of eleven"),
        ("twone", "twone"),
        # articles
        ("the cat on a mat", "cat on mat"),
        ("An", ""),
        ("theatre", "theatre"),
        # apostrophes: those left out come back, unless the word is another one without it
        ("dont", "don't"),
        ("don't", "don't"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("oclock", "o'clock"),
        ("twas", "'twas"),
        ("yall'd've", "y'all'd've"),
        ("hell", "hell"),
        ("well", "well"),
        ("im", "im"),
        ("its", "its"),
        # a possessive becomes two words
        ("the man's hat", "man 's hat"),
        ("it's", "it 's"),
        # commas and question marks go first, so no comma is left between digits
        ("red, white", "red white"),
        ("10,000", "10000"),
        ("what?", "what"),
        # other marks: deleted beside a space somewhere in the answer, else a space
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("red/ blue/green", "red bluegreen"),
        ("t-shirt", "t shirt"),
        ("(left)", "left"),
        ("stop!", "stop"),
        ("a_b", "b"),
        ("x@y", "x y"),
        ("tap: on", "tap: on"),
        # full stops: only those before a digit stay
        ("no.", "no"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("3.", "3"),
        ("p.m.", "pm"),
        ("." * 40, "." * 8),
    ],
)
def test_answers_are_normalised(answer, expected):
    assert normalise(answer) == expected


@pytest.mark.parametrize(
    ("agreeing", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (5, 1.0), (9, 1.0), (10, 1.0)]
)
def test_ten_people_of_whom_some_agree(agreeing, expected):
    answers = ["red"] * agreeing + ["blue", "green"] * 5
    assert vqa_accuracy("Red.", answers[:10]) == pytest.approx(expected, abs=1e-12)


def leave_one_out(said: str, answers: list[str]) -> float:
    """The definition: for each person, the others are asked."""
    scores = []
    for number in range(len(answers)):
        others = answers[:number] + answers[number + 1 :]
        scores.append(min(1, sum(normalise(other) == normalise(said) for other in others) / 3))
    return sum(scores) / len(scores)


def test_it_equals_its_definition():
    rng = random.Random(1)
    words = ["red", "Red.", "the red", "blue", "two", "2", "no", ""]
    seen = set()
    for _ in range(300):
        answers = rng.choices(words, k=10)
        said = rng.choice(words)
        assert vqa_accuracy(said, answers) == pytest.approx(leave_one_out(said, answers), abs=1e-12)
        seen.add(round(vqa_accuracy(said, answers), 1))
    assert seen == {0.0, 0.3, 0.6, 0.9, 1.0}


def test_answers_are_left_as_they_are():
    answers = ["The Red!"] * 10
    assert vqa_accuracy("red", answers) == 1 and answers == ["The Red!"] * 10


@pytest.mark.parametrize(("said", "true"), [("redder", "red"), ("3", "three of them"), ("5", ".5"), ("", "red")])
def test_another_answer_scores_nothing(said, true):
    assert vqa_accuracy(said, [true] * 10) == 0


@pytest.mark.parametrize("count", [0, 9, 11])
def test_ten_answers_are_expected(count):
    with pytest.raises(UserError, match=f"somewhere: answers: got {count}, 10 are expected"):
        check_answers(("red",) * count, "somewhere")
