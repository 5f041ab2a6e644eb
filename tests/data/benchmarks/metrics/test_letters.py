"""Which option an answer means, in three benchmarks' ways. The cases are written from their descriptions."""

import pytest

from data.benchmarks.metrics.letters import FORMS, leading_letter, named_option, single_letter

CHOICES = {"A": "a red car", "B": "Blue", "C": "a boat", "D": "blue sky"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("E", "E"),
        ("b", None),
        ("B.", None),
        ("AB", None),
        ("", None),
        ("F", None),
        ("The answer is B.", None),
    ],
)
def test_the_whole_answer_is_the_letter(answer, expected):
    assert single_letter(answer, "ABCDE") == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("F", None),
        ("b", None),
        ("B. blue", "B"),
        ("B.", None),
        ("B.blue", None),
        ("F. blue", None),
        ("B) blue", None),
        ("I think B. blue", None),
        ("The answer is B.", "B"),
        ("Blue is right. The answer is B. That is all.", "B"),
        ("The answer is B", None),
        ("The answer is B, blue", "B"),
        ("The answer is A. The answer is B.", None),
        ("The answer is F.", None),
        ("the answer is B.", None),
        ("", None),
        (". B", None),
    ],
)
def test_an_answer_leads_with_a_letter_or_states_it(answer, expected):
    assert leading_letter(answer, "ABCDE") == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        (" B\n", "B"),
        ("Option B", "B"),
        ("A", "A"),
        ("It is A", "A"),
        ("A man with hats", None),  # a lone A among more than three words is an article
        ("A nice red boat I say B", None),  # two letters
        ("A nice boat is (C)", "C"),
        ("A boat, I would say A.", "A"),
        ("A or B", None),
        ("A. or B", "B"),  # the letter alone is tried first
        ("b", None),
        ("E", None),  # no option of this question
        ("BC", None),
        ("The colour is Blue", "B"),  # its text, and no other option's
        ("the blue sky", None),  # holds the texts of B and D
        ("There is A RED CAR in it", "A"),
        ("", None),
    ],
)
def test_an_answer_names_an_option(answer, expected):
    assert named_option(answer, CHOICES) == expected


@pytest.mark.parametrize("form", ["X.", "X,", "X:", "X)", "X).", "(X)", "(X).", ":X", ":X,", ":X.", ":X)", ":X)."])
def test_a_letter_may_have_signs_around_it(form):
    assert form.replace("X", "{}") in FORMS
    assert named_option(f"well {form.replace('X', 'C')} yes", CHOICES) == "C"


@pytest.mark.parametrize("form", ["X!", "[X]", "X:.", "((X)", "X-"])
def test_other_signs_name_nothing(form):
    assert named_option(f"well {form.replace('X', 'C')} yes", CHOICES) is None


def test_only_the_options_of_the_question_are_named():
    assert named_option("C", {"A": "yes", "B": "no"}) is None
    assert named_option("C or B", {"A": "yes", "B": "no"}) == "B"
