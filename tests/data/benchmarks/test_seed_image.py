"""SEED-Bench image: the same questions in both layouts, accuracy by type, and files that are refused."""

import json

import pytest

from data.benchmarks.seed_image import TYPES, SeedImage
from tests.data.benchmarks.judged import answered, colors, facts, measured
from tests.data.benchmarks.small_files import change_table, place_of, refusal

SEED = SeedImage()
TABLE = "data/test-00000-of-00001.parquet"


@pytest.mark.parametrize("style", ["llava", "lmms"])
def test_both_layouts_have_the_same_questions_and_scores(tmp_path, style):
    llava, hub = (SEED.questions(place_of(SEED, tmp_path, layout), style) for layout in ("llava", "hub"))
    assert facts(llava) == facts(hub) and colors(llava) == colors(hub)
    assert [question.choices for question in llava] == [question.choices for question in hub]
    predictions = ["B", "B", "B", "A.", "B", "c", "", "A", "B\n"]  # 1 to 9 are B, C, D, A, B, C, D, A, B
    records = [answered(SEED, questions, predictions) for questions in (llava, hub)]
    metrics = [measured(SEED, of_layout) for of_layout in records]
    right = {1, 5, 8, 9}
    expected = {kind: 100.0 * (number in right) for number, kind in TYPES.items()}
    assert metrics[0] == metrics[1] == {"accuracy": pytest.approx(400 / 9)} | expected
    assert next(iter(metrics[0])) == "accuracy"
    assert [record.said for record in records[0]] == ["B", "B", "B", None, "B", None, None, "A", "B"]
    assert [record.score for record in records[0]] == [1, 0, 0, 0, 1, 0, 0, 1, 1]


def test_only_pictures_are_asked_about(tmp_path):
    questions = SEED.questions(place_of(SEED, tmp_path, "llava"), "llava")
    assert len(questions) == 9
    assert len({question.unit for question in questions}) == 5, "two questions are about one picture"
    assert questions[0].text == (
        "<image>\nWhat of Scene Understanding?\nA. 1 a\nB. None\nC. c\nD. d\n"
        "Answer with the option's letter from the given choices directly."
    )


def test_what_the_leaderboard_takes(tmp_path):
    place = place_of(SEED, tmp_path, "llava")
    records = answered(SEED, SEED.questions(place, "llava"), list("ABCDABCDA"))
    lines = SEED.submission(records, place)["seed_image.jsonl"].splitlines()
    assert json.loads(lines[2]) == {"question_id": "101672", "prediction": "C"}
    assert len(lines) == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "E"}, "answer: got 'E', one of A, B, C, D"),
        ({"answer": None}, "answer: got None"),
        ({"choice_b": 3}, "choice_b: got 3, a text"),
        ({"data_type": "text"}, "data_type: got 'text', allowed: image, video"),
        ({"question_type_id": 10}, "question_type_id: got 10, allowed: 1 to 9"),
        ({"question_type_id": "1"}, "question_type_id: got '1'"),
        ({"question_type_id": [1]}, "question_type_id: got [1]"),
        ({"data_id": None}, "data_id: got None"),
        ({"question_id": 1.5}, "question_id: got 1.5"),
    ],
)
def test_bad_truths_are_refused_by_name_in_both_layouts(tmp_path, change, message):
    hub = place_of(SEED, tmp_path, "hub")
    change_table(hub, TABLE, **{"data_type": "image"} | change)
    said = refusal(SEED, hub)
    assert message in said and "row 0" in said

    llava = place_of(SEED, tmp_path, "llava")
    path = llava.path / "SEED-Bench.json"
    truths = json.loads(path.read_text())
    truths["questions"] = [truth | change for truth in truths["questions"][1:]]
    path.write_text(json.dumps(truths))
    lines = (llava.path / "llava-seed-bench.jsonl").read_text().splitlines(keepends=True)
    (llava.path / "llava-seed-bench.jsonl").write_text("".join(lines[1:]))
    assert message in refusal(SEED, llava)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "What?"}, "it is to end with"),
        ({"text": None}, "question 1: text: got None"),
        ({"question_id": 7}, "question_id: got 7, which SEED-Bench.json lacks"),
        ({"question_id": [7]}, "question_id: got [7]"),
        ({"image": "SEED-Bench-image/none"}, "is not a file"),
        ({"image": "../secret"}, "lies outside its root"),
    ],
)
def test_a_bad_line_is_refused_by_name(tmp_path, change, message):
    place = place_of(SEED, tmp_path, "llava")
    path = place.path / "llava-seed-bench.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1] |= change
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert message in refusal(SEED, place)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "got list, an object is expected"), ('{"a": 1}', "no field is called 'questions'"), (None, "has no SEED")],
)
def test_a_wrong_file_of_truths_is_refused(tmp_path, text, message):
    place = place_of(SEED, tmp_path, "llava")
    path = place.path / "SEED-Bench.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    assert message in refusal(SEED, place)


@pytest.mark.parametrize(
    ("change", "message"), [({"data_id": ...}, "no column is called 'data_id'"), ({"image": []}, "image: got list")]
)
def test_a_bad_table_is_refused_by_name(tmp_path, change, message):
    place = place_of(SEED, tmp_path, "hub")
    change_table(place, TABLE, **change)
    assert message in refusal(SEED, place)
