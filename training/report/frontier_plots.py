"""The frontier drawn and tabulated: relative accuracy against what it costs, a line per planner.

Where plans stand both as they were found and distilled, each kind has its own half of a picture and its own lines of a table. A
point is the mean over seeds. Its interval, 95 %, is Student's over seeds where there are several, else Wilson's over the
questions of the one student.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, ScalarFormatter

from training.report.plots import SERIES, WIDTH, label, percent, plain

AXES = {
    "visual_flops": "visual FLOPs left",
    "model_flops": "FLOPs of the decoder's prefill left",
    "prefill_speedup": "measured prefill, speed-up over the dense model",
}
MARKERS = "os^Dv<>P"
# Student's t, two-sided 95 %, by degrees of freedom.
QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


Group = tuple[str, bool]
"""Planner, and whether its students are distilled."""


def by_planner(points: Sequence[Mapping]) -> dict[Group, dict[float | None, list[Mapping]]]:
    """Planner and kind -> budget -> its points, one per seed; budgets rise, a plan's own cost (None) comes last."""
    found: dict[Group, dict[float | None, list[Mapping]]] = {
        (point["planner"], point["distilled"]): {} for point in points
    }
    for point in sorted(points, key=lambda point: _order(point["budget"])):
        found[point["planner"], point["distilled"]].setdefault(point["budget"], []).append(point)
    return found


def interval(points: Sequence[Mapping]) -> tuple[float, float, float]:
    """Mean relative accuracy of one planner at one budget, and its 95 % interval."""
    values = [point["relative_accuracy"] for point in points]
    if len(values) == 1:
        (point,) = points
        scale = point["relative_accuracy"] / point["accuracy"] if point["accuracy"] else 0.0
        return values[0], point["low"] * scale, point["high"] * scale
    reach = QUANTILES[min(len(values) - 1, max(QUANTILES))] * stdev(values) / math.sqrt(len(values))
    return mean(values), mean(values) - reach, mean(values) + reach


def frontier_picture(points: Sequence[Mapping], axis: str) -> Figure:
    """Relative accuracy against one of `AXES`; every student is a faint point, a planner's means are joined."""
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
    """Markdown: a line per planner, a column per budget: mean relative accuracy, its interval, and the FLOPs really used."""
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


def families_table(points: Sequence[Mapping]) -> str:
    """Markdown: a line per planner and budget: measured speed-up of prefill and decode, and accuracy by family, with the 95 %
    interval where there is one student (means over seeds have none)."""
    families = list(points[0]["accuracy_by_family"])
    lines = [_header("planner, budget", ("prefill", "decode", *families))]
    for group, budgets in by_planner(points).items():
        for budget, students in reversed(budgets.items()):
            cells = [f"× {mean(point[f'{part}_speedup'] for point in students):.2f}" for part in ("prefill", "decode")]
            for family in families:
                low, high = students[0]["interval_by_family"][family]
                between = f" ({100 * low:.0f} to {100 * high:.0f})" if len(students) == 1 else ""
                cells.append(percent(mean(point["accuracy_by_family"][family] for point in students)) + between)
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
