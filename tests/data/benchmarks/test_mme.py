"""MME's metrics, against hand-worked cases."""

import pytest

from data.benchmarks.benchmark import Question
from data.benchmarks.mme import COGNITION, PERCEPTION, Mme, said_in
from data.benchmarks.place import Place
from modeling.user_error import UserError
from tests.benchmark_files import mme
from tests.data.benchmarks.judged import answered, measured


@pytest.mark.parametrize(
    ("prediction", "said"),
    [
        ("Yes", "yes"),
        (" no. ", "no"),
        ("y", "yes"),
        ("N.", "no"),
        ("x", None),
        ("Yes, it is", "yes"),
        ("Not at all", "no"),
        ("oh yes", None),  # the fourth letter is the first of the word
        ("ayes", "yes"),
        ("yeno", "no"),
        ("It is. No", None),
        ("I do not know", None),
        ("", None),
        ("...", None),
    ],
)
def test_answers_are_read_as_by_its_tool(prediction, said):
    assert said_in(prediction) == said


def pair(category: str, picture: str) -> list[Question]:
    return [Question(picture, "<image>\nIs it?", (), (true,), picture, group=category) for true in ("yes", "no")]


def test_metrics_of_a_hand_worked_table():
    questions = [*pair("count", "a"), *pair("count", "b"), *pair("OCR", "c"), *pair("code_reasoning", "d")]
    said = ["yes", "no", "yes", "yes", "no", "yes", "Yes.", "perhaps"]
    found = measured(Mme(), answered(Mme(), questions, said))
    assert list(found)[:2] == ["perception", "cognition"]
    assert found["count"] == 75 + 50  # three of four answers, one of two pictures
    assert found["OCR"] == 0
    assert found["code_reasoning"] == 50 + 0
    assert found["perception"] == 125 and found["cognition"] == 50
    assert found["unparsable"] == 12.5


def test_the_most_is_2000_and_800():
    questions = [q for category in (*PERCEPTION, *COGNITION) for q in pair(category, f"picture of {category}")]
    right = measured(Mme(), answered(Mme(), questions, ["yes", "no"] * 14))
    assert (right["perception"], right["cognition"]) == (2000, 800) and Mme.best == 2000
    always_yes = measured(Mme(), answered(Mme(), questions, ["yes"] * 28))
    assert (always_yes["perception"], always_yes["cognition"]) == (500, 200)


def test_the_submission_has_four_fields_and_pairs_in_order(tmp_path):
    mme.write_hub(tmp_path / "hub")
    place = Place(tmp_path / "hub")
    questions = Mme().questions(place, "llava")
    records = answered(Mme(), questions, ["yes\tor\nno"] * len(questions))
    apart = records[::2] + records[1::2]  # the two of a picture apart
    files = Mme().submission(apart, place)
    assert set(files) == {f"{category}.txt" for category in (*PERCEPTION, *COGNITION)}
    assert files["existence.txt"].splitlines() == [
        "0001.txt\tIs thing 0 here? Please answer yes or no.\tYes\tyes or no",
        "0001.txt\tIs thing 0 elsewhere? Please answer yes or no.\tNo\tyes or no",
        "0002.txt\tIs thing 14 here? Please answer yes or no.\tYes\tyes or no",
        "0002.txt\tIs thing 14 elsewhere? Please answer yes or no.\tNo\tyes or no",
    ]


@pytest.fixture
def llava(tmp_path):
    mme.write_llava(tmp_path / "llava")
    return tmp_path / "llava"


def refused(folder, match):
    with pytest.raises(UserError, match=match):
        Mme().questions(Place(folder), "llava")


def test_a_picture_with_one_question_is_refused(llava):
    lines = (llava / "llava_mme.jsonl").read_text().splitlines()
    (llava / "llava_mme.jsonl").write_text("\n".join(lines[:-1]))
    refused(llava, "questions about picture 'existence/0002.png': got 1, 2 are expected")


def test_a_question_without_its_true_answer_is_refused(llava):
    truth = llava / "MME_Benchmark_release_version" / "count" / "0001.txt"
    first, second = truth.read_text().splitlines()
    truth.write_text(first)
    refused(llava, "row 4: .*count/0001.txt has no question 'Is thing 1 elsewhere")
    truth.write_text(f"{first}\n{second.partition('	')[0]}")
    refused(llava, "count/0001.txt, line 2: got 'Is thing 1 elsewhere.*a question, a tab and an answer")
    truth.write_text(f"{first}\n{second.partition('	')[0]}\tmaybe")
    refused(llava, "answer: got 'maybe', one of Yes, No, yes, no is expected")
    truth.unlink()
    refused(llava, "has no .*questions_answers_YN/0001.txt and no MME_Benchmark_release_version/count/0001.txt")


def test_an_unknown_subtask_is_refused(llava):
    asked = (llava / "llava_mme.jsonl").read_text()
    (llava / "llava_mme.jsonl").write_text(asked.replace('"question_id": "count/', '"question_id": "../count/'))
    refused(llava, "category: got '..', one of existence, count")
