"""The plot of a search shows what was measured and what was taken."""

import json

import pytest

from modeling.layer_plan import LayerPlan
from modeling.visual_plan import VisualPlan
from tests.tiny_student import tiny_batch, tiny_student
from training.planners.fastv import FastvPlanner
from training.planners.g_search import GSearchPlanner
from training.planners.p_sigmoid import PSigmoidPlanner
from training.planners.tools.search import Search
from training.planners.tools.trials import read_trials
from training.planners.vtw import CURVE, VtwPlanner
from training.report.search_plots import search_plot
from training.report.style import png

NUM_LAYERS = 5
MODEL = tiny_student(NUM_LAYERS, seed=3)
BATCHES = [tiny_batch((1, 0, 2), seed=1)]


def plot(settings, folder):
    plan = settings.find(Search(MODEL, BATCHES, None, folder=folder))
    figure = search_plot(plan, 0.25, settings, folder)
    assert png(figure).startswith(b"\x89PNG")
    return plan, figure


def legend(axes):
    (below,) = axes.figure.legends  # of the figure, so that it lies on no curve
    return [text.get_text() for text in below.get_texts()]


def test_a_schedule_without_a_search_stands_alone(tmp_path):
    _, figure = plot(FastvPlanner(planner="fastv", keep=0.25), tmp_path)
    (schedule,) = figure.axes
    heights = schedule.patches[0].get_data().values
    assert heights.tolist() == [1.0, 1.0, 0.25, 0.25, 0.25]
    assert figure.get_suptitle() == "fastv plan: 25.0 % of the dense model's visual FLOPs"


def test_the_curve_has_its_tolerance_and_the_layer_taken(tmp_path):
    settings = VtwPlanner(planner="vtw", tolerance=0.5, hold_out=0.3)
    layers = (LayerPlan(), LayerPlan(), LayerPlan(), LayerPlan(tokens=0.0), LayerPlan(tokens=0.0))
    curve = [
        {"layer": layer, "kl": 3.0 / layer if layer < 5 else 0.0, "kl_hold_out": 4.0 / layer} for layer in range(1, 6)
    ]
    (tmp_path / CURVE).write_text(json.dumps(curve))
    _, axes = search_plot(VisualPlan(layers), 0.5, settings, tmp_path).axes
    assert legend(axes) == ["searched on", "held out", "tolerance 0.5", "chosen: 3"]
    searched = axes.lines[0].get_ydata()
    assert searched[:4].tolist() == pytest.approx([3.0, 1.5, 1.0, 0.75]) and searched[4] != searched[4], (
        "zero has no logarithm"
    )
    plan, figure = plot(settings.model_copy(update={"hold_out": 0.0}), tmp_path)
    assert "held out" not in legend(figure.axes[1])
    assert f"chosen: {sum(layer.tokens > 0 for layer in plan.layers)}" in legend(figure.axes[1])


def test_every_trial_of_g_search_is_a_point_and_the_share_taken_a_line(tmp_path):
    settings = GSearchPlanner(planner="g_search", tolerance=0.3, full_layers=1, trials=4)
    plan, figure = plot(settings, tmp_path)
    axes = figure.axes[1]
    tried = [trial for trials in read_trials(tmp_path / "trials.journal").values() for trial in trials]
    points = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert [line.get_ydata()[0] for line in points] == [share for share, _ in tried]
    full = [line.get_markerfacecolor() != "none" for line in points]
    assert full == [worth <= 1 for _, worth in tried] and len(set(full)) == 2
    taken = [line.get_ydata()[0] for line in axes.lines if len(line.get_xdata()) == 2 and line.get_color() == "#E69F00"]
    shares = [layer.tokens for layer in plan.layers][1 : 1 + len(taken)]
    assert taken == pytest.approx(shares, abs=1e-6)


def test_the_slope_taken_is_ringed(tmp_path):
    settings = PSigmoidPlanner(planner="p_sigmoid", budget={"visual_flops": 0.7}, trials=6)
    _, figure = plot(settings, tmp_path)
    (tried,) = read_trials(tmp_path / "trials.journal").values()
    best = min(tried, key=lambda trial: trial[1])
    (ring,) = figure.axes[1].lines
    assert figure.axes[1].get_yscale() == "log"
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == best and legend(figure.axes[1]) == [
        f"taken: k = {best[0]:.3g}"
    ]


def test_a_budget_that_lets_all_tokens_stay_has_no_logarithm(tmp_path):
    _, figure = plot(PSigmoidPlanner(planner="p_sigmoid", budget={"visual_flops": 1.0}, trials=3), tmp_path)
    assert figure.axes[1].get_yscale() == "linear" and len(figure.axes[1].collections[0].get_offsets()) == 3
