"""POPE's metrics, against hand-worked cases."""

import json

import pytest

from data.benchmarks.benchmark import Question
from data.benchmarks.place import Place
from data.benchmarks.pope import Pope, said_in
from modeling.user_error import UserError
from tests.benchmark_files import pope
from tests.data.benchmarks.judged import answered, measured


@pytest.mark.parametrize(
    ("prediction", "said"),
    [
        ("Yes", "yes"),
        ("yes.", "yes"),
        ("Yes, there is", "yes"),
        ("No", "no"),
        ("No, there is not.", "no"),
        ("There is not a cup", "no"),
        ("there is no cup", "no"),
        ("Yes. No.", "yes"),  # only the first sentence is read
        ("Yes and no", "no"),  # "no" outweighs
        ("No!", None),  # the mark makes it another word
        ("NO", None),
        ("nothing", None),
        ("", None),
        (". no", None),
        ("I cannot tell", None),
    ],
)
def test_answers_are_read_as_by_llava(prediction, said):
    assert said_in(prediction) == said


def asked(split: str, true: str, unit: str) -> Question:
    return Question("1", "<image>\nIs it?", (), (true,), unit, group=split)


def test_an_unparsable_answer_counts_as_yes():
    assert Pope().judge(asked("random", "yes", "u"), "maybe") == (1.0, None)
    assert Pope().judge(asked("random", "no", "u"), "maybe") == (0.0, None)


def test_metrics_of_a_hand_worked_table():
    rows = [
        # split, true answer, answer
        ("adversarial", "yes", "yes"),  # hit
        ("adversarial", "no", "yes"),  # false alarm
        ("adversarial", "no", "no"),
        ("adversarial", "yes", "no"),  # miss: precision 1/2, recall 1/2
        ("popular", "yes", "yes"),
        ("popular", "no", "no"),
        ("popular", "no", "no"),
        ("popular", "no", "perhaps"),  # counts as yes: precision 1/2, recall 1
        ("random", "yes", "yes"),
        ("random", "yes", "Yes."),
        ("random", "no", "No"),
    ]
    questions = [asked(split, true, f"picture {number % 3}") for number, (split, true, _) in enumerate(rows)]
    found = measured(Pope(), answered(Pope(), questions, [said for *_, said in rows]))
    assert next(iter(found)) == "F1"
    assert found["F1"] == pytest.approx(100 * (1 / 2 + 2 / 3 + 1) / 3)
    assert found["accuracy"] == pytest.approx(100 * 8 / 11)
    assert found["precision"] == pytest.approx(100 * 4 / 6)
    assert found["recall"] == pytest.approx(100 * 4 / 5)
    assert found["pooled F1"] == pytest.approx(100 * 8 / 11)
    assert found["yes-ratio"] == pytest.approx(100 * 6 / 11)
    assert found["unparsable"] == pytest.approx(100 / 11)
    assert found["adversarial F1"] == pytest.approx(50)
    assert found["adversarial accuracy"] == pytest.approx(50)
    assert found["popular precision"] == pytest.approx(50)
    assert found["popular recall"] == pytest.approx(100)
    assert found["popular unparsable"] == pytest.approx(25)
    assert found["random accuracy"] == pytest.approx(100)
    assert found["random yes-ratio"] == pytest.approx(100 * 2 / 3)


def test_one_who_always_says_no_has_no_f1():
    questions = [asked(split, true, "u") for split in ("adversarial", "popular", "random") for true in ("yes", "no")]
    found = measured(Pope(), answered(Pope(), questions, ["no"] * 6))
    assert (found["F1"], found["accuracy"], found["yes-ratio"]) == (0, 50, 0)


def test_labels_are_matched_by_their_order(tmp_path):
    """Their ids start anew in each split, and are not those of the questions."""
    pope.write_llava(tmp_path / "pope")
    assert [q.answers[0] for q in Pope().questions(Place(tmp_path / "pope"), "llava")] == [row[-1] for row in pope.ROWS]


def test_labels_of_other_questions_are_refused(tmp_path):
    """As where they are of another version of POPE."""
    pope.write_llava(tmp_path / "pope")
    labels = tmp_path / "pope" / "coco" / "coco_pope_popular.json"
    first, second = labels.read_text().splitlines()
    labels.write_text(f"{second}\n{first}")
    with pytest.raises(
        UserError, match=r"row 3: is about picture '.*07.jpg', the next label of popular is about '.*42"
    ):
        Pope().questions(Place(tmp_path / "pope"), "llava")
    labels.write_text(first)
    with pytest.raises(UserError, match=r"row 4: is about picture '.*42.jpg', the next label of popular is about None"):
        Pope().questions(Place(tmp_path / "pope"), "llava")
    labels.write_text(first + "\n" + json.dumps({**json.loads(second), "label": "maybe"}))
    with pytest.raises(
        UserError, match=r"coco_pope_popular.json, row 2: label: got 'maybe', one of yes, no is expected"
    ):
        Pope().questions(Place(tmp_path / "pope"), "llava")
    labels.unlink()
    with pytest.raises(UserError, match="has no coco/coco_pope_popular.json"):
        Pope().questions(Place(tmp_path / "pope"), "llava")
