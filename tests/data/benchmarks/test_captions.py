"""Captions of COCO and NoCaps: CIDEr over the whole set, what scorers take, and tables that are refused."""

import json

import pytest

from data.benchmarks.captions import CocoCaptions, NoCaps
from data.benchmarks.metrics.cider import Cider
from tests.benchmark_files.coco_captions import CAPTIONS
from tests.data.benchmarks.judged import answered, facts, measured
from tests.data.benchmarks.small_files import change_table, place_of, refusal

TABLES = {"coco_captions": "data/val-00000-of-00001.parquet", "nocaps": "data/validation-00000-of-00001.parquet"}
PREDICTIONS = ["a red square", "a bear in the grass", "a cat", ""]

both = pytest.mark.parametrize("benchmark", [CocoCaptions(), NoCaps()], ids=lambda benchmark: benchmark.name)


@both
def test_questions_and_scores(tmp_path, benchmark):
    place = place_of(benchmark, tmp_path, "hub")
    questions = benchmark.questions(place, "llava")
    assert [question.id for question in questions] == ["139", "285", "632", "724"]
    assert len({question.unit for question in questions}) == 4
    assert [list(question.answers) for question in questions] == list(CAPTIONS.values())
    assert questions[0].text == "<image>\nProvide a one-sentence caption for the provided image."
    assert facts(questions) == facts(benchmark.questions(place, "lmms"))

    records = answered(benchmark, questions, PREDICTIONS)
    cider = Cider(list(CAPTIONS.values()))
    scores = [cider.score(text, own) for text, own in zip(PREDICTIONS, CAPTIONS.values(), strict=True)]
    assert [record.score for record in records] == scores
    assert scores[0] > scores[1] > 0.5 > scores[2] and scores[3] == 0
    assert [record.said for record in records] == [*PREDICTIONS[:3], None]
    assert measured(benchmark, records) == {"CIDEr (no PTB)": pytest.approx(100 * sum(scores) / 4)}


@both
def test_words_are_weighed_by_all_pictures_that_were_read(tmp_path, benchmark):
    """Where every picture is of a red square, "red square" says nothing of any."""
    place = place_of(benchmark, tmp_path, "hub")
    before = answered(benchmark, benchmark.questions(place, "llava"), PREDICTIONS)[0].score
    change_table(place, TABLES[benchmark.name], **{benchmark.captions_column: ["a red square", "red square"]})
    after = answered(benchmark, benchmark.questions(place, "llava"), PREDICTIONS)[0].score
    assert before > 1 and after == 0


@both
def test_what_scorers_take(tmp_path, benchmark):
    place = place_of(benchmark, tmp_path, "hub")
    records = answered(benchmark, benchmark.questions(place, "llava"), PREDICTIONS)
    (file, text), *others = benchmark.submission(records, place).items()
    assert file == f"{benchmark.name}_results.json" and not others
    assert json.loads(text)[1] == {"image_id": 285, "caption": "a bear in the grass"}
    assert len(json.loads(text)) == 4


@both
def test_llavas_layout_is_none(tmp_path, benchmark):
    place = place_of(benchmark, tmp_path, "hub")
    (place.path / TABLES[benchmark.name]).unlink()
    assert str(place) in refusal(benchmark, place)


@both
@pytest.mark.parametrize("captions", [None, "a red square", [], [3]])
def test_bad_captions_are_refused_by_name(tmp_path, benchmark, captions):
    place = place_of(benchmark, tmp_path, "hub")
    change_table(place, TABLES[benchmark.name], **{benchmark.captions_column: captions})
    assert f"row 0: {benchmark.captions_column}: got {captions!r}, a list of texts" in refusal(benchmark, place)


@both
@pytest.mark.parametrize("name", ["red.jpg", "139.png", "", "1" * 19, 1.5, None])
def test_a_picture_without_a_number_is_refused(tmp_path, benchmark, name):
    place = place_of(benchmark, tmp_path, "hub")
    change_table(place, TABLES[benchmark.name], **{benchmark.id_column: name})
    assert f"row 0: {benchmark.id_column}: got {name!r}" in refusal(benchmark, place)


@pytest.mark.parametrize(
    ("name", "number"), [("COCO_val2014_000000391895.jpg", "391895"), ("000000000139.jpg", "139"), (0, "0"), (7, "7")]
)
def test_numbers_of_pictures(tmp_path, name, number):
    place = place_of(CocoCaptions(), tmp_path, "hub")
    change_table(place, TABLES["coco_captions"], question_id=name)
    assert CocoCaptions().questions(place, "llava")[0].id == number


@both
def test_a_missing_column_is_refused_by_name(tmp_path, benchmark):
    place = place_of(benchmark, tmp_path, "hub")
    change_table(place, TABLES[benchmark.name], **{benchmark.captions_column: ...})
    assert f"no column is called {benchmark.captions_column!r}" in refusal(benchmark, place)
