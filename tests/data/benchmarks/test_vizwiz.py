"""VizWiz: the metric of its validation part, and what the server takes for test."""

import json

import pytest

from data.benchmarks.place import Place
from data.benchmarks.vizwiz import VizWiz, VizWizTest
from modeling.user_error import UserError
from tests.benchmark_files import vizwiz
from tests.data.benchmarks.judged import answered, measured


@pytest.fixture
def llava(tmp_path):
    vizwiz.write_llava(tmp_path / "llava")
    return Place(tmp_path / "llava")


@pytest.fixture
def hub(tmp_path):
    vizwiz.write_hub(tmp_path / "hub")
    return Place(tmp_path / "hub")


def test_soft_accuracy(hub):
    questions = VizWiz().questions(hub, "llava")
    # Six of ten, one of ten, eight of ten, and three of ten: "the cereal" is "cereal".
    records = answered(VizWiz(), questions, ["Milk", "Navy.", "Unanswerable", "cereal"])
    assert [record.score for record in records] == pytest.approx([1, 0.3, 1, 0.9])
    assert measured(VizWiz(), records) == {"accuracy": pytest.approx(80)}


def test_the_prompt_allows_to_give_no_answer(llava, hub):
    first = "<image>\nWhat is this? is it milk?" + vizwiz.SUFFIX
    assert VizWizTest().questions(llava, "llava")[0].text == first
    assert VizWizTest().questions(hub, "lmms")[0].text == first
    assert VizWiz().questions(hub, "llava")[0].text == first


def test_the_server_takes_pictures_and_normalised_answers(llava, hub):
    for place in (llava, hub):
        questions = VizWizTest().questions(place, "llava")
        assert [question.answers for question in questions] == [()] * 4
        records = answered(VizWizTest(), questions, ["The milk.", "blue/white", "Unanswerable", ""])
        (text,) = VizWizTest().submission(records, place).values()
        assert json.loads(text) == [
            {"image": "VizWiz_test_00000003.jpg", "answer": "milk"},
            {"image": "VizWiz_test_00000004.jpg", "answer": "blue white"},
            {"image": "VizWiz_test_00000007.jpg", "answer": "unanswerable"},
            {"image": "VizWiz_test_00000009.jpg", "answer": ""},
        ]


def test_llavas_files_have_no_validation_part(llava):
    with pytest.raises(UserError, match="hold test, whose answers are not published; ask for vizwiz_test"):
        VizWiz().questions(llava, "llava")


def test_ten_answers_are_expected(tmp_path):
    row = {"question_id": "VizWiz_val_00000003", "question": "What?", "answers": ["a"] * 9}
    row["image"] = vizwiz.stored("red")
    vizwiz.write_split([row], {"image": vizwiz.datasets.Image()}, tmp_path / "data", "val")
    with pytest.raises(UserError, match="row 0: answers: got 9, 10 are expected"):
        VizWiz().questions(Place(tmp_path), "llava")
