"""ScienceQA-IMG: the same questions in both layouts, answers as LLaVA reads them, and files that are refused."""

import json
from dataclasses import replace

import pytest

from data.benchmarks.scienceqa_img import ScienceQaImg
from modeling.user_error import UserError
from tests.data.benchmarks.judged import answered, colors, facts, measured
from tests.data.benchmarks.small_files import change_table, place_of, refusal

SCIENCE = ScienceQaImg()
TABLE = "ScienceQA-IMG/test-00000-of-00001.parquet"
FILE = "llava_test_CQM-A.json"


@pytest.mark.parametrize("style", ["llava", "lmms"])
def test_both_layouts_have_the_same_questions_and_scores(tmp_path, style):
    llava, hub = (SCIENCE.questions(place_of(SCIENCE, tmp_path, layout), style) for layout in ("llava", "hub"))
    assert [question.id for question in llava] == ["5", "7", "9"]
    assert [question.id for question in hub] == ["0", "1", "2"], "the Hub's table has no ids"
    assert facts([replace(q, id="", unit="") for q in llava]) == facts([replace(q, id="", unit="") for q in hub])
    assert colors(llava) == colors(hub)
    predictions = ["B", "A. yes", "no idea"]
    metrics = [measured(SCIENCE, answered(SCIENCE, questions, predictions)) for questions in (llava, hub)]
    assert metrics[0] == metrics[1] == {"accuracy": pytest.approx(200 / 3)}


def test_a_question_is_asked_as_llava_asks_it(tmp_path):
    first, second, _ = SCIENCE.questions(place_of(SCIENCE, tmp_path, "llava"), "llava")
    assert first.text == (
        "<image>\nContext: The sky is clear.\nWhich colour is it?\nA. red\nB. blue\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert second.text.startswith("<image>\nIs this a stone?\n"), "no context without a hint"


@pytest.mark.parametrize(
    ("prediction", "score", "said"),
    [("B", 1, "B"), (" B\n", 1, "B"), ("B. blue", 1, "B"), ("The answer is B.", 1, "B"), ("A", 0, "A"), ("b", 0, None)],
)
def test_answers_are_judged(tmp_path, prediction, score, said):
    question = SCIENCE.questions(place_of(SCIENCE, tmp_path, "llava"), "llava")[0]
    assert SCIENCE.judge(question, prediction) == (score, said)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "problem 1: id: got None, a text or a whole number is expected"),
        ({"image": "5/none.png"}, "'5/none.png' is not a file"),
        ({"image": "../../../secret.png"}, "lies outside its root"),
        ({"image": 3}, "got 3 as a picture's name"),
        ({"conversations": None}, "problem 1: conversations: got None"),
        ({"conversations": [{"value": "a"}]}, "a question and an answer are expected"),
        ({"conversations": ["a", "b"]}, "problem 1: conversations: got str, an object is expected"),
        ({"conversations": [{"value": 5}, {"value": "A"}]}, "problem 1: value: got 5, a text is expected"),
        ({"conversations": [{"value": "a"}, {"value": "F"}]}, "value: got 'F', one of A, B, C, D, E is expected"),
    ],
)
def test_a_bad_problem_is_refused_by_name(tmp_path, change, message):
    place = place_of(SCIENCE, tmp_path, "llava")
    problems = json.loads((place.path / FILE).read_text())
    problems[1] |= change
    (place.path / FILE).write_text(json.dumps(problems))
    assert message in refusal(SCIENCE, place)


@pytest.mark.parametrize(("text", "message"), [("{}", "a list of problems is expected"), ("[", "not JSON")])
def test_another_file_is_refused(tmp_path, text, message):
    place = place_of(SCIENCE, tmp_path, "llava")
    (place.path / FILE).write_text(text)
    assert message in refusal(SCIENCE, place)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 3}, "row 0: answer: got 3, allowed: 0 to 1"),
        ({"answer": -1}, "row 0: answer: got -1"),
        ({"answer": True}, "row 0: answer: got True"),
        ({"answer": "B"}, "row 0: answer: got 'B'"),
        ({"choices": "ab"}, "row 0: choices: got 'ab', a list of texts is expected"),
        ({"choices": []}, "row 0: choices: got []"),
        ({"choices": list("abcdef")}, "row 0: choices: got 6, at most 5"),
        ({"hint": 7}, "row 0: hint: got 7, a text is expected"),
        ({"question": None}, "row 0: question: got None"),
        ({"question": "See <image> here"}, "holds the mark <image>"),
        ({"question": ...}, "no column is called 'question'"),
        ({"image": None}, "image: got null"),
        ({"image": "a.png"}, "image: got string"),
        ({"image": {"bytes": None, "path": "a.png"}}, "row 0: image: has no picture"),
    ],
)
def test_a_bad_table_is_refused_by_name(tmp_path, change, message):
    place = place_of(SCIENCE, tmp_path, "hub")
    change_table(place, TABLE, **change)
    assert message in refusal(SCIENCE, place)


def test_a_hint_may_be_missing(tmp_path):
    place = place_of(SCIENCE, tmp_path, "hub")
    change_table(place, TABLE, hint=None)
    assert "Context" not in SCIENCE.questions(place, "llava")[0].text


def test_what_llavas_scorer_takes(tmp_path):
    place, hub = (place_of(SCIENCE, tmp_path, layout) for layout in ("llava", "hub"))
    records = answered(SCIENCE, SCIENCE.questions(place, "llava"), ["B", "A", "A"])
    lines = [json.loads(line) for line in SCIENCE.submission(records, place)["scienceqa_img.jsonl"].splitlines()]
    assert [(line["question_id"], line["text"]) for line in lines] == [("5", "B"), ("7", "A"), ("9", "A")]
    assert all("<image>" in line["prompt"] for line in lines)
    with pytest.raises(UserError, match="knows the ids of llava_test_CQM-A.json alone"):
        SCIENCE.submission(records, hub)
