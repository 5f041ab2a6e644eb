"""Every benchmark from its files to its submission: a tiny LLaVA is asked, in both layouts."""

import json

import pytest

from data.benchmarks.names import BenchmarkName
from data.benchmarks.registry import BENCHMARKS
from modeling.user_error import UserError
from tests.benchmark_files.all_benchmarks import public, write_all
from tests.tiny_llava import tiny_llava
from tests.tiny_processor import tiny_processor
from training.evaluation.answer_files import write_answer_files, write_submissions
from training.evaluation.asking import evaluate
from training.evaluation.comparison import as_dict, compare
from training.evaluation.questions import read_benchmarks
from training.evaluation.results import Evaluation
from training.recipe.data import BenchmarkSettings

WITH_SUBMISSION = {"vqav2_testdev", "gqa", "vizwiz_test", "mme"}


@pytest.fixture(scope="module")
def model():
    processor = tiny_processor()
    return tiny_llava(processor), processor


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {layout: write_all(tmp_path_factory.mktemp(layout), layout) for layout in ("llava", "hub")}


def asked(folder, names, **settings):
    return read_benchmarks(BenchmarkSettings(benchmarks=tuple(names), path=folder, **settings))


def test_every_name_has_a_benchmark():
    assert tuple(BENCHMARKS) == BenchmarkName.__args__


def test_both_layouts_give_the_same_questions_answers_and_scores(model, folders):
    both = public("llava")
    found = {
        layout: evaluate(*model, asked(folder, both), batch_size=8, max_new_tokens=6)
        for layout, folder in folders.items()
    }
    facts = ("benchmark", "question", "answers", "prediction", "score")
    by_layout = [[[getattr(record, fact) for fact in facts] for record in e.records] for e in found.values()]
    assert by_layout[0] == by_layout[1]
    assert found["llava"].metrics == found["hub"].metrics
    assert len({record.prediction for record in found["llava"].records}) > 10, (
        "answers that differ, or this says little"
    )


@pytest.mark.parametrize("layout", ["llava", "hub"])
def test_from_questions_to_answers_scores_and_submission(model, folders, layout, tmp_path):
    parts = asked(folders[layout], public(layout))
    evaluation = evaluate(*model, parts, batch_size=8, max_new_tokens=6)
    unscored = {"vqav2_testdev", "vizwiz_test"}
    assert set(evaluation.metrics) == set(public(layout)) - unscored
    assert 0 <= evaluation.accuracy <= 1

    path = tmp_path / "evaluation.json"
    evaluation.save(path)
    again = Evaluation.load(path)
    assert again == evaluation and again.metrics == evaluation.metrics
    rows = as_dict(compare(evaluation, again))
    assert all(row["difference"] == 0 and row["kept"] in (None, 1.0) for row in rows.values())

    write_answer_files(evaluation, tmp_path / "answers", "tiny")
    for part in parts:
        lines = (tmp_path / "answers" / f"{part.benchmark.name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [str(json.loads(line)["question_id"]) for line in lines] == [q.id for q in part.questions]
    without = {"hub": {"scienceqa_img"}, "llava": set()}[layout]  # it has no ids there
    with_files = [p for p in parts if p.benchmark.has_submission and p.benchmark.name not in without]
    assert {part.benchmark.name for part in with_files} >= WITH_SUBMISSION & set(public(layout))
    written = write_submissions(evaluation, with_files, tmp_path / "submission")
    assert {file.relative_to(tmp_path / "submission").parts[0] for file in written} == {
        part.benchmark.name for part in with_files
    }
    assert all(file.stat().st_size for file in written)


def test_a_benchmark_whose_folder_is_missing_is_refused(folders, tmp_path):
    with pytest.raises(UserError, match=r"pope: .* has no folder pope or POPE"):
        asked(tmp_path, ["pope"])


def test_the_first_questions_alone(folders):
    (part,) = asked(folders["llava"], ["pope"], num_questions=1)
    assert 1 <= len(part.questions) < len(asked(folders["llava"], ["pope"])[0].questions)
