"""What the plots show. How they look is left to a person's eye."""

import pytest

from modeling.layer_plan import LayerPlan
from modeling.visual_plan import VisualPlan
from training.evaluation.intervals import Accuracy
from training.report.gate_plots import budget_plot
from training.report.numbers import percent
from training.report.page import CURVES
from training.report.plan_plots import _plan_rows, plan_plot
from training.report.result_plots import curves_plot, families_plot
from training.report.style import png, save

PLAN = VisualPlan(
    (
        LayerPlan(heads=(1,), ffn=(3, 4), radius=2, bidirectional=True),
        LayerPlan(attend=False, ffn=0, read=False),
        LayerPlan(tokens=1.0),
        LayerPlan(tokens=0.25, read=False),
        LayerPlan(tokens=0.0),
    )
)


def test_cells_tell_done_from_unplanned_from_dead():
    rows = dict(_plan_rows(PLAN, num_units=2, intermediate_size=8))

    def shown(label):
        (cells,) = (cells for name, cells in rows.items() if name.startswith(label))
        return ["dead" if cell.dead else cell.text or cell.share for cell in cells]

    # Layer 2 is the last that text reads: its own updates, and all of layer 3, come to nothing.
    assert shown("tokens") == [1.0, 1.0, 1.0, "dead", 0.0]
    assert shown("updated by attention") == [1, 0, "dead", "dead", 0]
    assert shown("sight") == ["2±", 0, "dead", "dead", 0]
    assert shown("updated by FFN") == ["25", 0.0, "dead", "dead", 0.0]
    assert shown("heads") == ["50", 0.0, 1.0, "dead", 0.0]
    assert shown("read") == [1, 0, 1, 0, 0]


def test_a_plan_of_other_sizes_is_refused():
    with pytest.raises(ValueError, match="got 5 layers, the model has 4"):
        plan_plot(PLAN, 2, 8, [1.0] * 4)


def test_names_are_text_and_files_are_whole(tmp_path):
    value = Accuracy(0.5, 0.4, 0.6, 10)
    figure = families_plot({"a $\\frac{$ name $ " * 9: {"reading": value}, "b": {"reading": value}})
    save(figure, tmp_path / "families.png")
    assert (tmp_path / "families.png").read_bytes() == png(figure)
    assert [path.name for path in tmp_path.iterdir()] == ["families.png"]


def test_names_of_many_families_do_not_overlap():
    values = {f"a_long_name_{number}": Accuracy(1.2, 1.1, 1.3, 9) for number in range(17)}
    figure = families_plot({"dense": values, "sparse": values})
    figure.canvas.draw()
    (axes,) = figure.axes
    assert axes.get_ylim()[1] > 1.3  # CIDEr exceeds what counts as 100 %
    assert {text.get_rotation() for text in axes.get_xticklabels()} == {35}
    assert {text.get_rotation() for text in families_plot({"dense": {"a": values["a_long_name_0"]}}).axes[0].texts} == {
        0
    }


def test_curves_of_any_length():
    for length in (1, 2, 50):
        assert png(curves_plot({"loss": [(step, 1 / step) for step in range(1, length + 1)]})).startswith(b"\x89PNG")


def many_curves(steps: int):
    names = (*CURVES.values(),)
    return curves_plot({name: [(step, 1 / step) for step in range(1, steps + 1)] for name in names})


def gates(steps: int):
    return budget_plot([{"step": s, "cost": 1 / s, "target": 1 / s} for s in range(1, steps + 1)], 0.12, 0.11)


@pytest.mark.parametrize("plot", [many_curves, gates])
@pytest.mark.parametrize("steps", [1, 2, 3, 300])
def test_steps_are_whole_and_legends_lie_beside_the_curves(plot, steps):
    figure = plot(steps)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    shown = [tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    assert shown and all(tick == round(tick) for tick in shown)
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert axes.get_legend() is None and not box.overlaps(axes.get_window_extent())
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


@pytest.mark.parametrize(("share", "text"), [(0.1234, "12.3 %"), (1, "100.0 %"), (None, "–")])
def test_percent(share, text):
    assert percent(share) == text
