"""GQA's metric, its submission, and its two tables and files."""

import json

import pytest

from data.benchmarks.benchmark import Question
from data.benchmarks.gqa import Gqa
from data.benchmarks.place import Place
from modeling.user_error import UserError
from tests.benchmark_files import gqa
from tests.data.benchmarks.judged import answered, measured


@pytest.mark.parametrize(
    ("prediction", "score"),
    [
        ("paper towel", 1),
        ("Paper Towel.", 1),
        ("paper towel...", 1),
        (" paper towel\n", 1),
        ("paper towels", 0),
        ("a paper towel", 0),
        ("paper-towel", 0),
        ("paper towel!", 0),
        (".", 0),
        ("", 0),
    ],
)
def test_answers_match_exactly_or_not_at_all(prediction, score):
    question = Question("1", "<image>\nWhat?", (), ("paper towel",), "n1")
    judgement = Gqa().judge(question, prediction)
    assert judgement.score == score
    assert (judgement.said is None) == (prediction in (".", ""))


@pytest.fixture
def llava(tmp_path):
    gqa.write_llava(tmp_path / "llava")
    return tmp_path / "llava"


@pytest.fixture
def hub(tmp_path):
    gqa.write_hub(tmp_path / "hub")
    return tmp_path / "hub"


def test_accuracy_and_submission(llava):
    questions = Gqa().questions(Place(llava), "llava")
    records = answered(Gqa(), questions, ["Red.", "yes", "Paper towel", "left", "Yes"])
    assert measured(Gqa(), records) == {"accuracy": 80}
    (text,) = Gqa().submission(records, Place(llava)).values()
    assert json.loads(text) == [
        {"questionId": "201000001", "prediction": "red"},
        {"questionId": "201000002", "prediction": "yes"},
        {"questionId": "201000003", "prediction": "paper towel"},
        {"questionId": "201000004", "prediction": "left"},
        {"questionId": "201000005", "prediction": "yes"},
    ]


def refused(folder, match):
    with pytest.raises(UserError, match=match):
        Gqa().questions(Place(folder), "llava")


def test_questions_need_true_answers(llava):
    path = llava / "data" / "testdev_balanced_questions.json"
    truths = json.loads(path.read_text())
    path.write_text(json.dumps({**truths, "201000002": {"answer": 3}}))
    refused(llava, "question 201000002: answer: got 3, a text is expected")
    path.write_text(json.dumps({**truths, "201000002": "no"}))
    refused(llava, "question 201000002: got str, an object is expected")
    del truths["201000002"]
    path.write_text(json.dumps(truths))
    refused(llava, "row 2: question_id: .*testdev_balanced_questions.json has no question '201000002'")
    path.write_text("[]")
    refused(llava, "testdev_balanced_questions.json: got list, an object is expected")
    path.unlink()
    refused(llava, "has no data/testdev_balanced_questions.json and no data/questions1.2/")


def test_the_official_release_has_its_questions_in_a_folder(llava):
    expected = Gqa().questions(Place(llava), "llava")
    (llava / "data" / "questions1.2").mkdir()
    file = "testdev_balanced_questions.json"
    (llava / "data" / file).rename(llava / "data" / "questions1.2" / file)
    assert Gqa().questions(Place(llava), "llava") == expected


def test_pictures_are_joined_by_their_id(hub):
    questions = Gqa().questions(Place(hub), "llava")
    assert [question.images[0].row for question in questions] == [1, 1, 0, 0, 0]
    folder = hub / "testdev_balanced_images"
    gqa.write_split([{"id": "n1001", "image": gqa.stored("red")}], {"image": gqa.datasets.Image()}, folder, "testdev")
    refused(hub, "testdev_balanced_instructions, row 2: imageId: testdev_balanced_images has no picture 'n1002'")


def test_both_tables_are_needed(hub):
    (hub / "testdev_balanced_images" / "testdev-00000-of-00001.parquet").unlink()
    refused(hub, "testdev_balanced_images")
