"""The frontier drawn and tabulated: relative accuracy against what it costs, a line per planner.

A point is the mean over seeds. Its interval, 95 %, is Student's over seeds where there are several, else Wilson's over the
questions of the one student.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, ScalarFormatter

from training.pictures import SERIES, WIDTH, label, percent, plain

AXES = {
    "visual_flops": "visual FLOPs left",
    "model_flops": "FLOPs of the decoder's prefill left",
    "prefill_speedup": "measured prefill, speed-up over the dense model",
}
MARKERS = "os^Dv<>P"
# Student's t, two-sided 95 %, by degrees of freedom.
QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def by_planner(points: Sequence[Mapping]) -> dict[str, dict[float, list[Mapping]]]:
    """Planner -> budget -> its points, one per seed; budgets rise."""
    found: dict[str, dict[float, list[Mapping]]] = {}
    for point in sorted(points, key=lambda point: point["budget"]):
        found.setdefault(point["planner"], {}).setdefault(point["budget"], []).append(point)
    order = dict.fromkeys(point["planner"] for point in points)
    return {planner: found[planner] for planner in order}


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
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.subplots()
    for number, (planner, budgets) in enumerate(by_planner(points).items()):
        color, marker = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)]
        line = []
        for students in budgets.values():
            place = mean(point[axis] for point in students)
            value, low, high = interval(students)
            line.append((place, value))
            axes.plot((place, place), (low, min(high, 1.02)), color=color, linewidth=2, alpha=0.35, solid_capstyle="butt")
            for point in students:
                axes.plot(point[axis], point["relative_accuracy"], marker, color=color, markersize=4, alpha=0.4, markeredgewidth=0)
        places, values = zip(*sorted(line), strict=True)
        axes.plot(places, values, marker=marker, color=color, linewidth=1.6, markersize=7, label=label(planner))
    axes.set(xlabel=AXES[axis], ylabel="accuracy, of the dense model's")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    if axis == "visual_flops":
        axes.set_xscale("log")
        axes.set_xticks(sorted({point["budget"] for point in points}))
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    elif axis == "model_flops":
        axes.xaxis.set_major_formatter(PercentFormatter(1))
    else:
        axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.legend(frameon=False, loc="lower left" if axis == "prefill_speedup" else "lower right")
    plain(axes, grid="y")
    return figure


def frontier_table(points: Sequence[Mapping]) -> str:
    """Markdown: a line per planner, a column per budget: mean relative accuracy, its interval, and the FLOPs really used."""
    budgets = sorted({point["budget"] for point in points}, reverse=True)
    lines = ["| planner | " + " | ".join(f"budget {budget:.0%}" for budget in budgets) + " |", "|---" * (len(budgets) + 1) + "|"]
    for planner, found in by_planner(points).items():
        cells = []
        for budget in budgets:
            if budget not in found:
                cells.append("–")
                continue
            value, low, high = interval(found[budget])
            used = mean(point["visual_flops"] for point in found[budget])
            cells.append(f"{percent(value)} ({100 * low:.1f} to {100 * min(high, 1.0):.1f}), at {percent(used)}")
        lines.append(f"| {planner} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
