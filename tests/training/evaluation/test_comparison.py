"""Intervals and paired comparisons, against slow references and values worked out by hand."""

import random

import numpy as np
import pytest

from data.benchmarks.benchmark import Benchmark, Judgement, Record, units_of
from data.benchmarks.registry import BENCHMARKS
from training.evaluation.comparison import compare, mcnemar, relative_accuracy
from training.evaluation.intervals import RESAMPLINGS, resample, wilson
from training.evaluation.results import Evaluation


def record(number: int, score: float | None, unit: str = "", group: str = "") -> Record:
    return Record("shapes", str(number), "shapes", group, unit or str(number), "?", ("red",), "red", None, score, None)


def records(scores, per_unit: int = 1, groups=("",)) -> list[Record]:
    return [record(i, score, f"u{i // per_unit}", groups[i % len(groups)]) for i, score in enumerate(scores)]


def random_scores(count: int, skill: float, seed: int) -> list[float]:
    rng = random.Random(seed)
    return [float(rng.random() < skill) for _ in range(count)]


def test_resampled_metrics_are_those_of_records_that_are_really_drawn_again():
    answered = records(random_scores(40, 0.6, 1), per_unit=3, groups=("one", "two"))
    benchmark = BENCHMARKS["shapes"]
    found = resample(benchmark, answered)

    units = list(units_of(answered).values())
    generator = np.random.default_rng(0)
    for draw in range(5):
        again = [r for unit in generator.integers(len(units), size=len(units)) for r in units[unit]]
        for name in ("accuracy", "one", "two"):
            scores = [r.score for r in again if name in ("accuracy", r.group)]
            assert found.draws[name][draw] == pytest.approx(100 * sum(scores) / len(scores))
    assert found.values["accuracy"] == pytest.approx(100 * sum(r.score for r in answered) / 40)
    assert all(len(draws) == RESAMPLINGS for draws in found.draws.values())


def test_questions_about_one_picture_make_an_interval_wider():
    scores = [score for score in random_scores(100, 0.5, 2) for _ in range(4)]  # four that stand or fall together
    together, apart = (
        resample(BENCHMARKS["shapes"], records(scores, 4)),
        resample(BENCHMARKS["shapes"], records(scores)),
    )
    widths = [high - low for low, high in (together.interval("accuracy"), apart.interval("accuracy"))]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.15)  # variance times four


def test_a_bootstrap_of_independent_scores_is_as_wide_as_the_normal_interval():
    low, high = resample(BENCHMARKS["shapes"], records(random_scores(2000, 0.7, 3))).interval("accuracy")
    assert high - low == pytest.approx(2 * 1.96 * 100 * (0.7 * 0.3 / 2000) ** 0.5, rel=0.1)


def test_a_mean_of_independent_scores_has_wilsons_interval():
    """A bootstrap of answers that are all right says that nothing can go wrong."""
    metrics = Evaluation.of(records([1.0] * 20, groups=("one", "two"))).metrics["shapes"]
    assert metrics["accuracy"] == pytest.approx((100, 100 * wilson([1.0] * 20).low, 100))
    assert metrics["one"] == pytest.approx((100, 100 * wilson([1.0] * 10).low, 100))
    assert metrics["one"].low < metrics["accuracy"].low < 90
    shared = Evaluation.of(records([1.0] * 20, per_unit=2)).metrics["shapes"]["accuracy"]
    assert shared == (100, 100, 100), "two questions about a picture are not independent"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(0, 0, 1.0), (5, 0, 2 / 32), (0, 5, 2 / 32), (10, 2, 2 * (1 + 12 + 66) / 4096), (3, 3, 1.0)],
)
def test_mcnemar_by_hand(first, second, expected):
    assert mcnemar(first, second) == pytest.approx(expected)


def test_mcnemar_of_many_questions_is_the_normal_approximation():
    # z = (|b - c| - 1) / sqrt(b + c) = 2.9778, two-sided p = 0.0029
    assert mcnemar(10_600, 10_165) == pytest.approx(0.0026, abs=5e-4)


def test_a_paired_difference_is_surer_than_two_intervals():
    dense = random_scores(500, 0.6, 4)
    sparse = [1 - score if i % 50 == 0 else score for i, score in enumerate(dense)]  # ten answers differ
    found = compare(Evaluation.of(records(dense)), Evaluation.of(records(sparse)))["shapes"]
    assert found.difference == pytest.approx(100 * (sum(sparse) - sum(dense)) / 500)
    assert found.low <= found.difference <= found.high
    low, high = resample(BENCHMARKS["shapes"], records(dense)).interval("accuracy")
    assert found.high - found.low < 0.4 * (high - low)
    assert found.kept == pytest.approx(sum(sparse) / sum(dense))
    gained = sum(b > a for a, b in zip(dense, sparse, strict=True))
    assert found.p_value == mcnemar(10 - gained, gained)


def test_a_model_beside_itself_differs_by_nothing():
    evaluation = Evaluation.of(records(random_scores(60, 0.5, 5)))
    found = compare(evaluation, evaluation, evaluation)["shapes"]
    assert (found.difference, found.low, found.high, found.kept, found.p_value) == (0, 0, 0, 1, 1)
    assert found.blind == found.dense


def test_answers_that_can_be_partly_right_have_no_mcnemar_test():
    evaluation = Evaluation.of(records([0.5, 1.0, 0.0]))
    assert compare(evaluation, evaluation)["shapes"].p_value is None


def test_relative_accuracy_is_the_mean_of_the_shares_kept(monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "other", Other())
    dense = [*records([1.0, 1.0, 0.0, 0.0]), *others([1.0, 1.0])]
    sparse = [*records([1.0, 0.0, 0.0, 0.0]), *others([1.0, 1.0])]
    assert relative_accuracy(Evaluation.of(sparse), Evaluation.of(dense)) == pytest.approx((0.5 + 1) / 2)
    nothing = [*records([0.0] * 4), *others([1.0, 1.0])]
    assert relative_accuracy(Evaluation.of(sparse), Evaluation.of(nothing)) is None


def test_the_overall_accuracy_counts_benchmarks_alike(monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "other", Other())
    evaluation = Evaluation.of([*records([1.0, 0.0, 0.0, 0.0]), *others([1.0, 0.5])])
    assert evaluation.families["other"].accuracy == pytest.approx(0.75)
    assert evaluation.accuracy == pytest.approx((0.25 + 0.75) / 2)
    assert evaluation.low < evaluation.accuracy < evaluation.high


def test_answers_without_a_published_truth_have_no_metrics(tmp_path):
    evaluation = Evaluation.of([record(0, None), record(1, None)])
    assert evaluation.metrics == {}
    with pytest.raises(ValueError, match="nothing to score"):
        evaluation.overall  # noqa: B018
    evaluation.save(tmp_path / "e.json")
    assert Evaluation.load(tmp_path / "e.json") == evaluation


class Other(Benchmark):
    """A benchmark whose best value is 10, of which a unit has two questions."""

    name = title = "other"
    folders = ("other",)
    max_new_tokens = None
    best = 10.0

    def questions(self, place, style):
        raise NotImplementedError

    def judge(self, question, prediction) -> Judgement:
        raise NotImplementedError

    def metrics(self, totals):
        return {"points": 10 * totals["all score"] / totals["all count"]}


def others(scores) -> list[Record]:
    return [Record("other", str(i), "other", "", "one", "?", ("a",), "a", None, s, None) for i, s in enumerate(scores)]
