"""The frontier as plots and tables: relative accuracy against cost, with one line per planner.

A recipe may ask for plans both untrained and distilled. Then each kind has its own half of a plot and its own lines in
a table. A point is the mean over seeds, with a 95 % interval. Over several seeds it is Student's t interval. For one
seed it is Wilson's interval over the questions that the one student was asked.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, ScalarFormatter

from training.report.numbers import percent
from training.report.style import SERIES, WIDTH, label, plain

AXES = {
    "visual_flops": "visual FLOPs left",
    "model_flops": "FLOPs of the decoder's prefill left",
    "prefill_speedup": "measured prefill, speed-up over the dense model",
}
"""What a frontier is plotted against: key of a point -> label of the axis."""
MARKERS = "os^Dv<>P"
T_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Degrees of freedom -> quantile of Student's t for a two-sided interval of 95 %."""

Group = tuple[str, bool]
"""Planner, and whether its students are distilled."""


def by_planner(points: Sequence[Mapping]) -> dict[Group, dict[float | None, list[Mapping]]]:
    """Returns planner and kind -> budget -> points, one point per seed.

    Budgets rise. None comes last: it stands for a plan that has no budget.
    """
    found: dict[Group, dict[float | None, list[Mapping]]] = {
        (point["planner"], point["distilled"]): {} for point in points
    }
    for point in sorted(points, key=lambda point: _order(point["budget"])):
        found[point["planner"], point["distilled"]].setdefault(point["budget"], []).append(point)
    return found


def interval(points: Sequence[Mapping]) -> tuple[float, float, float]:
    """Returns mean, lower and upper end of the 95 % interval of relative accuracy.

    Args:
        points: the points of one planner at one budget, one per seed.
    """
    values = [point["relative_accuracy"] for point in points]
    if len(values) == 1:
        (point,) = points
        scale = point["relative_accuracy"] / point["accuracy"] if point["accuracy"] else 0.0
        return values[0], point["low"] * scale, point["high"] * scale
    reach = T_QUANTILES[min(len(values) - 1, max(T_QUANTILES))] * stdev(values) / math.sqrt(len(values))
    return mean(values), mean(values) - reach, mean(values) + reach


def frontier_plot(points: Sequence[Mapping], axis: str) -> Figure:
    """Plots relative accuracy against one of `AXES`.

    Every student is a faint point. A line joins the means of a planner.

    Args:
        points: objects of frontier.json (training/tasks/frontier.py).
        axis: a key of `AXES`.
    """
    kinds = sorted({point["distilled"] for point in points})
    planners = list(dict.fromkeys(point["planner"] for point in points))
    figure = Figure(figsize=(WIDTH, 4.4 + 0.2 * math.ceil(len(planners) / 4)), layout="constrained")
    halves = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    lines = {}
    for (planner, distilled), budgets in by_planner(points).items():
        number = planners.index(planner)
        color, marker = SERIES[number % len(SERIES)], MARKERS[number // len(SERIES) % len(MARKERS)]
        axes = halves[kinds.index(distilled)]
        line = []
        for students in budgets.values():
            place = mean(point[axis] for point in students)
            value, low, high = interval(students)
            line.append((place, value))
            axes.plot(
                (place, place), (low, min(high, 1.02)), color=color, linewidth=2, alpha=0.35, solid_capstyle="butt"
            )
            for point in students:
                axes.plot(
                    point[axis],
                    point["relative_accuracy"],
                    marker,
                    color=color,
                    markersize=4,
                    alpha=0.4,
                    markeredgewidth=0,
                )
        places, values = zip(*sorted(line), strict=True)
        (lines[planner],) = axes.plot(
            places, values, marker=marker, color=color, linewidth=1.6, markersize=7, label=label(planner)
        )
    for axes, distilled in zip(halves, kinds, strict=True):
        axes.set(xlabel=AXES[axis])
        if len(kinds) > 1:
            axes.set_title("distilled" if distilled else "as found, untrained", fontsize=10)
        if axis == "visual_flops":
            axes.set_xscale("log")
            axes.set_xticks(sorted({point["budget"] for point in points} - {None}))
            axes.minorticks_off()
        axes.xaxis.set_major_formatter(
            ScalarFormatter() if axis == "prefill_speedup" else PercentFormatter(1, decimals=0)
        )
        plain(axes, grid="y")
    halves[0].set_ylabel("accuracy, of the dense model's")
    halves[0].yaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(handles=list(lines.values()), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def frontier_table(points: Sequence[Mapping]) -> str:
    """Returns a Markdown table with a line per planner and a column per budget.

    A cell gives the mean relative accuracy, its interval, and the visual FLOPs that the plans really cost.
    """
    budgets = sorted({point["budget"] for point in points}, key=_order, reverse=True)
    lines = [_header("planner", ("its own cost" if budget is None else f"budget {budget:.0%}" for budget in budgets))]
    for group, found in by_planner(points).items():
        cells = []
        for budget in budgets:
            if budget not in found:
                cells.append("–")
                continue
            value, low, high = interval(found[budget])
            used = mean(point["visual_flops"] for point in found[budget])
            cells.append(f"{percent(value)} ({100 * low:.1f} to {100 * min(high, 1.0):.1f}), at {percent(used)}")
        lines.append(_line(_name(group), cells))
    return "\n".join(lines) + "\n"


def frontier_families_table(points: Sequence[Mapping]) -> str:
    """Returns a Markdown table with a line per planner and budget.

    It gives the measured speed-up of prefill and decode, and the accuracy in each family of questions. A 95 % interval
    is given only where there is one student, as it is not known for a mean over seeds.
    """
    families = list(points[0]["accuracy_by_family"])
    lines = [_header("planner, budget", ("prefill", "decode", *families))]
    for group, budgets in by_planner(points).items():
        for budget, students in reversed(budgets.items()):
            cells = [
                f"× {mean(point[f'{phase}_speedup'] for point in students):.2f}" for phase in ("prefill", "decode")
            ]
            for family in families:
                low, high = students[0]["interval_by_family"][family]
                interval_text = f" ({100 * low:.0f} to {100 * high:.0f})" if len(students) == 1 else ""
                cells.append(percent(mean(point["accuracy_by_family"][family] for point in students)) + interval_text)
            lines.append(_line(f"{_name(group)}, {'its own cost' if budget is None else f'{budget:.0%}'}", cells))
    return "\n".join(lines) + "\n"


def _order(budget: float | None) -> float:
    return math.inf if budget is None else budget


def _name(group: Group) -> str:
    planner, distilled = group
    return planner if distilled else f"{planner}, untrained"


def _header(first: str, others: Iterable[str]) -> str:
    titles = [first, *others]
    return f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|"


def _line(first: str, cells: Iterable[str]) -> str:
    return f"| {' | '.join([first, *cells])} |"
