"""Plots of a run's results: training curves, the comparison of models, and accuracy by family.

Every function returns a matplotlib `Figure` and keeps no global state.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from training.evaluation.intervals import Accuracy
from training.report.numbers import percent
from training.report.style import BLUE, GREY, INK, ORANGE, SERIES, WIDTH, label, plain, steps_across

CROWDED = 8
"""Families in a plot, beyond which their names and values stand aslant, so as not to overlap."""


def curves_plot(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Plots training curves on one logarithmic axis. Thick lines are smoothed.

    Args:
        curves: name of each curve -> (step, value) pairs. Values are positive.
    """
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    for color, (name, points) in zip(cycle(SERIES), curves.items(), strict=False):
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=color, alpha=0.3, linewidth=0.8)
        axes.plot(steps, _smooth(values), color=color, linewidth=2, label=name)
    steps_across(axes)
    axes.yaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside upper right", ncols=3, frameon=False, fontsize=9)
    plain(axes, grid="y")
    return figure


def comparison_plot(rows: Sequence[Mapping]) -> Figure:
    """Plots the accuracy of each model with its 95 % interval, and beside it the visual FLOPs that the model costs.

    Args:
        rows: rows of the comparison table, the dense model first. Each has `name`, `distilled`, and the fractions
            `accuracy`, `low`, `high` and `visual_flops`. The dense model is blue, distilled models are orange, and
            other models are grey.
    """
    figure = Figure(figsize=(WIDTH, 1.2 + 0.42 * len(rows)), layout="constrained")
    points, bars = figure.subplots(1, 2, sharey=True, width_ratios=(2.2, 1))
    for line, row in enumerate(rows):
        color = BLUE if line == 0 else ORANGE if row["distilled"] else GREY
        points.plot((row["low"], row["high"]), (line, line), color=color, linewidth=3, solid_capstyle="butt", alpha=0.6)
        points.plot(row["accuracy"], line, "o", color=color, markersize=8)
        points.annotate(
            percent(row["accuracy"]),
            (row["accuracy"], line),
            (0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=INK,
        )
        bars.barh(line, row["visual_flops"], height=0.55, color=color)
        bars.text(row["visual_flops"] + 0.02, line, percent(row["visual_flops"]), va="center", fontsize=9, color=INK)
    points.set(
        yticks=range(len(rows)),
        yticklabels=[label(row["name"]) for row in rows],
        ylim=(len(rows) - 0.4, -0.7),
        xlabel="accuracy of generated answers (bar: 95 % interval)",
    )
    points.xaxis.set_major_formatter(PercentFormatter(1))
    bars.set(xlim=(0, 1.2), xticks=(0, 0.5, 1), xlabel="visual FLOPs left")
    bars.xaxis.set_major_formatter(PercentFormatter(1))
    plain(points, grid="x")
    plain(bars)
    for axes in (points, bars):
        axes.tick_params(axis="y", length=0)
    return figure


def families_plot(models: Mapping[str, Mapping[str, Accuracy]]) -> Figure:
    """Plots the accuracy of each model in each question family. Whiskers are 95 % intervals.

    Args:
        models: name of each model -> family -> accuracy. All models have the same families.
    """
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    families = list(next(iter(models.values())))
    width, crowded = 0.8 / len(models), len(families) > CROWDED
    highest = max(value.high for accuracies in models.values() for value in accuracies.values())  # CIDEr may exceed 1
    for number, (color, (name, accuracies)) in enumerate(zip(SERIES, models.items(), strict=False)):
        places = [index + (number - (len(models) - 1) / 2) * width for index in range(len(families))]
        values = [accuracies[family] for family in families]
        heights = [value.accuracy for value in values]
        whiskers = [[v.accuracy - v.low for v in values], [v.high - v.accuracy for v in values]]
        axes.bar(places, heights, width * 0.92, color=color, label=label(name))
        axes.errorbar(places, heights, whiskers, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
        for place, value in zip(places, values, strict=True):
            axes.text(
                place,
                value.high + 0.015,
                f"{100 * value.accuracy:.0f}",
                ha="center",
                fontsize=6 if crowded else 8,
                color=INK,
                rotation=90 if crowded else 0,
            )
    axes.set(
        xticks=range(len(families)),
        xticklabels=families,
        ylim=(0, max(1.0, highest) + 0.1),
        yticks=(0, 0.25, 0.5, 0.75, 1),
        ylabel="accuracy",
    )
    if crowded:
        for text in axes.get_xticklabels():
            text.set(rotation=35, horizontalalignment="right", rotation_mode="anchor")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.tick_params(axis="x", length=0)
    figure.legend(loc="outside upper right", ncols=len(models), frameon=False)
    plain(axes, grid="y")
    return figure


def _smooth(values: Sequence[float]) -> list[float]:
    """Returns the mean over a centred window of a tenth of the curve. The window is shorter at the curve's ends."""
    reach = len(values) // 20
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
