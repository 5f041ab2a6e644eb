"""TextVQA: its metric, and its prompts with OCR tokens and without."""

import json

import pytest

from data.benchmarks.place import Place
from data.benchmarks.textvqa import TextVqa, TextVqaOcr
from modeling.user_error import UserError
from tests.benchmark_files import textvqa
from tests.data.benchmarks.judged import answered, measured


@pytest.fixture
def llava(tmp_path):
    textvqa.write_llava(tmp_path / "llava")
    return Place(tmp_path / "llava")


@pytest.fixture
def hub(tmp_path):
    textvqa.write_hub(tmp_path / "hub")
    return Place(tmp_path / "hub")


def test_prompts_with_ocr_tokens_and_without(llava, hub):
    for place in (llava, hub):
        without, with_ocr = (kind().questions(place, "llava") for kind in (TextVqa, TextVqaOcr))
        assert [question.text for question in without[1:3]] == [
            "<image>\nWhat is above?" + textvqa.SUFFIX,
            "<image>\nWhat is the brand?" + textvqa.SUFFIX,
        ]
        assert [question.text for question in with_ocr[1:3]] == [
            "<image>\nWhat is above?\nReference OCR token: R, Reebo, Ex" + textvqa.SUFFIX,
            "<image>\nWhat is the brand?\nReference OCR token: " + textvqa.SUFFIX,
        ]


def test_one_question_about_two_pictures_has_the_answers_of_each(llava):
    questions = TextVqa().questions(llava, "llava")
    assert questions[0].text == questions[2].text
    assert questions[0].answers[0] == "reebok" and questions[2].answers[0] == "unanswerable"


@pytest.mark.parametrize("kind", [TextVqa, TextVqaOcr])
def test_soft_accuracy(hub, kind):
    questions = kind().questions(hub, "llava")
    # Nine of ten, three of ten, nobody, and four of ten: "one" is 1.
    records = answered(kind(), questions, ["Reebok!", "ex", "none", "one"])
    assert [record.score for record in records] == pytest.approx([1, 0.9, 0, 1])
    assert measured(kind(), records) == {"accuracy": pytest.approx(72.5)}
    assert kind().submission(records, hub) == {}


def refused(place, match):
    with pytest.raises(UserError, match=match):
        TextVqa().questions(place, "llava")


def test_questions_need_true_answers(llava):
    path = llava.path / "TextVQA_0.5.1_val.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({"data": whole["data"][:-1]}))
    refused(
        llava, "row 1: TextVQA_0.5.1_val.json has no question 'What is the brand.' about picture '003a8ae2ef43b901'"
    )
    path.write_text(json.dumps({"data": [{**whole["data"][0], "answers": ["a"] * 9}]}))
    refused(llava, "TextVQA_0.5.1_val.json, data 0: answers: got 9, 10 are expected")
    path.write_text(json.dumps({"data": [{"image_id": "a"}]}))
    refused(llava, "data 0: no field is called 'question'")
    path.write_text(json.dumps({"data": {}}))
    refused(llava, "data: got dict, a list is expected")
    path.write_text(json.dumps(whole["data"]))
    refused(llava, "TextVQA_0.5.1_val.json: got list, an object is expected")
    path.unlink()
    refused(llava, "has no TextVQA_0.5.1_val.json")


def test_a_question_file_without_ocr_tokens_is_refused(llava):
    path = llava.path / "llava_textvqa_val_v051_ocr.jsonl"
    path.write_text(path.read_text().replace("Reference OCR token: ", "OCR: "))
    refused(llava, "row 1: text: got .*, OCR tokens after 'Reference OCR token:' are expected")
