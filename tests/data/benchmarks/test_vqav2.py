"""VQAv2: the metric of its validation part, and what the server takes for test-dev."""

import json

import pytest

from data.benchmarks.place import Place
from data.benchmarks.vqav2 import Vqav2, Vqav2TestDev
from modeling.user_error import UserError
from tests.benchmark_files import vqav2
from tests.data.benchmarks.judged import answered, measured


@pytest.fixture
def llava(tmp_path):
    vqav2.write_llava(tmp_path / "llava")
    return Place(tmp_path / "llava")


@pytest.fixture
def hub(tmp_path):
    vqav2.write_hub(tmp_path / "hub")
    return Place(tmp_path / "hub")


def test_soft_accuracy_by_type_of_answer(hub):
    questions = Vqav2().questions(hub, "llava")
    # Six say "red". Nobody says "no". Two say 2, and two say two. One says "the man".
    records = answered(Vqav2(), questions, ["Red.", "No", "Two", "A man"])
    assert [record.score for record in records] == pytest.approx([1, 0, 1, 0.3])
    assert [record.said for record in records] == ["red", "no", "2", "man"]
    found = measured(Vqav2(), records)
    assert list(found) == ["accuracy", "other", "yes/no", "number"]
    assert list(found.values()) == pytest.approx([100 * 2.3 / 4, 65, 0, 100])


def test_validation_answers_for_the_official_scorer(hub):
    questions = Vqav2().questions(hub, "llava")
    (text,) = Vqav2().submission(answered(Vqav2(), questions, ["Red.", "", "two", "x"]), hub).values()
    assert json.loads(text)[:3] == [
        {"question_id": 42000, "answer": "red"},
        {"question_id": 42001, "answer": ""},
        {"question_id": 42002, "answer": "2"},
    ]


def test_test_dev_has_no_answers_and_no_score(llava, hub):
    for place in (llava, hub):
        questions = Vqav2TestDev().questions(place, "llava")
        assert [question.answers for question in questions] == [()] * 4


def test_the_server_is_told_of_all_questions(llava, hub):
    benchmark = Vqav2TestDev()
    said = [{"question_id": id, "answer": "2 cats"} for id, *_ in vqav2.ROWS]
    for place, unasked in ((llava, [{"question_id": vqav2.UNASKED, "answer": ""}]), (hub, [])):
        records = answered(benchmark, benchmark.questions(place, "llava"), ["The two cats."] * 4)
        (text,) = benchmark.submission(records, place).values()
        assert json.loads(text) == unasked + said
    records = answered(benchmark, benchmark.questions(llava, "llava")[:1], ["red"])
    (text,) = benchmark.submission(records, llava).values()
    assert [row["answer"] for row in json.loads(text)] == ["", "red", "", "", ""]


def test_llavas_files_have_no_validation_part(llava):
    with pytest.raises(UserError, match="hold test-dev, whose answers are not published; ask for vqav2_testdev"):
        Vqav2().questions(llava, "llava")


def test_all_ids_are_needed(llava):
    path = llava.path / "llava_vqav2_mscoco_test2015.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]))
    with pytest.raises(UserError, match="row 4: question_id: llava_vqav2_mscoco_test2015.jsonl has no question 77000"):
        Vqav2TestDev().questions(llava, "llava")
    path.unlink()
    with pytest.raises(UserError, match="has no llava_vqav2_mscoco_test2015.jsonl"):
        Vqav2TestDev().questions(llava, "llava")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"answers": [{"answer": "red"}] * 9}, "row 0: answers: got 9, 10 are expected"),
        ({"answers": [{"text": "red"}] * 10}, "row 0: answers: no field is called 'answer'"),
        ({"answers": ["red"] * 10}, "row 0: answers: got str, an object is expected"),
        ({"answers": [{"answer": 3}] * 10}, "row 0: answers: got .*, a list of texts is expected"),
        ({"answers": []}, "row 0: answers: got .*, a list of texts is expected"),
        ({"answer_type": "colour"}, "row 0: answer_type: got 'colour', one of yes/no, number, other is expected"),
        ({"question_id": "42a"}, "row 0: question_id: got '42a', a whole number is expected"),
    ],
)
def test_a_wrong_row_is_refused(tmp_path, change, match):
    id, picture, color, question, kind, people = vqav2.ROWS[0]
    row = {"question_id": id, "image_id": picture, "question": question, "answer_type": kind}
    row |= {"answers": [{"answer": answer} for answer in people], "image": vqav2.stored(color)} | change
    vqav2.write_split([row], {"image": vqav2.datasets.Image()}, tmp_path / "data", "validation")
    with pytest.raises(UserError, match=match):
        Vqav2().questions(Place(tmp_path), "llava")


def test_a_picture_may_have_any_name(tmp_path):
    """COCO's names end with a number. A name that is no such one is a unit of its own, however long its digits are."""
    id, _, color, question, kind, people = vqav2.ROWS[0]
    row = {"question_id": id, "question": question, "answer_type": kind}
    row |= {"answers": [{"answer": answer} for answer in people], "image": vqav2.stored(color)}
    names = ("COCO_val2014_000000000042.jpg", "42", "1" * 5_000, "1" * 100_000 + "x")
    rows = [row | {"image_id": name} for name in names]
    vqav2.write_split(rows, {"image": vqav2.datasets.Image()}, tmp_path / "data", "validation")
    units = [asked.unit for asked in Vqav2().questions(Place(tmp_path), "llava")]
    assert units == ["42", "42", "1" * 18, names[3]]
