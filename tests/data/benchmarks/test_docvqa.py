"""DocVQA: its questions, ANLS over pages, and tables that are refused."""

import pytest

from data.benchmarks.docvqa import DocVqa
from tests.data.benchmarks.judged import answered, facts, measured
from tests.data.benchmarks.small_files import change_table, place_of, refusal

DOCVQA = DocVqa()
TABLE = "DocVQA/validation-00000-of-00001.parquet"


def test_questions_and_scores(tmp_path):
    place = place_of(DOCVQA, tmp_path, "hub")
    questions = DOCVQA.questions(place, "llava")
    assert [question.id for question in questions] == ["337", "338", "339", "340"]
    assert [question.unit for question in questions] == ["279", "279", "280", "281"]
    assert questions[0].answers == ("1/8/93", "Jan 8 1993")
    assert questions[0].text == "<image>\nWhat is the date?\nAnswer the question using a single word or phrase."
    assert facts(questions) == facts(DOCVQA.questions(place, "lmms"))

    records = answered(DOCVQA, questions, ["JAN 8 1993", "R. Carter", "$1,200", "four"])
    assert [record.score for record in records] == pytest.approx([1, 8 / 9, 6 / 7, 0])
    assert measured(DOCVQA, records) == {"ANLS": pytest.approx(100 * (1 + 8 / 9 + 6 / 7) / 4)}


def test_an_empty_answer_says_nothing(tmp_path):
    question = DOCVQA.questions(place_of(DOCVQA, tmp_path, "hub"), "llava")[0]
    assert DOCVQA.judge(question, " \n") == (0.0, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": None}, "row 0: answers: got None, a list of texts"),
        ({"answers": "a"}, "row 0: answers: got 'a'"),
        ({"answers": [1, 2]}, "row 0: answers: got [1, 2]"),
        ({"question": 5}, "row 0: question: got 5"),
        ({"docId": None}, "row 0: docId: got None"),
        ({"docId": ...}, "no column is called 'docId'; they are questionId"),
        ({"image": "a.png"}, "image: got string"),
    ],
)
def test_a_bad_table_is_refused_by_name(tmp_path, change, message):
    place = place_of(DOCVQA, tmp_path, "hub")
    change_table(place, TABLE, **change)
    assert message in refusal(DOCVQA, place)
