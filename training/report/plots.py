"""Pictures of a run: the plan, the training curves, the comparison of models, accuracy by family.

Every function returns a matplotlib `Figure` and keeps no global state; `png` turns one into bytes, `save` into a file.
Colours are those of Okabe and Ito, told apart by colour-blind readers; the plan uses shades of one hue.
"""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from modeling.layer_plan import LayerPlan, num_served
from modeling.visual_plan import LiveLayer, VisualPlan
from training.measure.evaluation import Accuracy

BLUE, ORANGE, GREEN, VERMILION, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#8A8F98"
SERIES = (BLUE, ORANGE, GREY, GREEN, VERMILION, PURPLE)
INK, FAINT, PAPER = "#22272E", "#D5D9DE", "#FFFFFF"
WIDTH = 9.6  # inches; a report's column at 150 dpi


def png(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor=PAPER)
    return buffer.getvalue()


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes the figure as PNG, whole or not at all."""
    partial = Path(f"{path}.partial")
    partial.write_bytes(png(figure))
    partial.replace(path)


def percent(share: float | None) -> str:
    """A share in percent with one decimal; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.1f} %"


def plan_picture(plan: VisualPlan, num_units: int, intermediate_size: int, layer_flops: Sequence[float]) -> Figure:
    """What each decoder layer does for visual tokens, and what that costs.

    Args:
        num_units, intermediate_size: the decoder's attention units and FFN neurons.
        layer_flops: per layer, its visual FLOPs as a fraction of the same layer in the dense model.
    """
    plan.check(len(layer_flops), num_units, intermediate_size)
    num_layers = len(plan)
    rows = _plan_rows(plan, num_units, intermediate_size)
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    bars, cells = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2.6))

    figure.suptitle(
        f"Work for visual tokens, layer by layer: {percent(sum(layer_flops) / num_layers)} of the dense model's FLOPs",
        fontsize=12,
        color=INK,
    )
    bars.bar(range(num_layers), layer_flops, width=0.82, color=BLUE)
    for index, share in enumerate(layer_flops):
        if share:
            text = f"{100 * share:.2g}" if share < 0.095 else f"{100 * share:.0f}"
            bars.text(index, share + 0.03, text, ha="center", va="bottom", fontsize=_small(num_layers), color=INK)
    bars.set(ylim=(0, 1.2), yticks=(0, 0.5, 1), ylabel="FLOPs\nleft, %")
    bars.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    plain(bars, grid="y")
    bars.tick_params(axis="x", length=0)

    for row, (_, values) in enumerate(rows):
        for layer, cell in enumerate(values):
            _draw_cell(cells, layer, row, cell, _small(num_layers))
    cells.set(
        xlim=(-0.55, num_layers - 0.45),
        ylim=(len(rows) - 0.45, -0.55),
        yticks=range(len(rows)),
        yticklabels=[label for label, _ in rows],
        xlabel="decoder layer",
    )
    cells.xaxis.set_major_locator(MaxNLocator(nbins=17, integer=True))
    plain(cells)
    cells.tick_params(length=0)
    for side in ("left", "bottom"):
        cells.spines[side].set_visible(False)
    figure.legend(
        handles=[
            Patch(facecolor=shade(1.0), label="as in the dense model"),
            Patch(facecolor=shade(0.25), label="a part (25 %)"),
            Patch(facecolor=PAPER, edgecolor=FAINT, label="not in the plan"),
            Patch(facecolor=PAPER, edgecolor=FAINT, hatch="////", label="dead: nothing later reads it, not computed"),
        ],
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=9,
        handlelength=1.4,
        handleheight=1.2,
    )
    return figure


def curves_picture(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Training curves on one logarithmic axis: name -> (step, positive value) pairs; thick lines are smoothed."""
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    for color, (name, points) in zip(SERIES, curves.items(), strict=False):
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=color, alpha=0.3, linewidth=0.8)
        axes.plot(steps, _smooth(values), color=color, linewidth=2, label=name)
    axes.set(xlabel="optimizer step", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False, ncols=len(curves), loc="upper right")
    plain(axes, grid="y")
    return figure


def comparison_picture(rows: Sequence[Mapping]) -> Figure:
    """Accuracy with its interval beside the visual FLOPs it costs, one line per row of the comparison table.

    Args:
        rows: each with `name`, `distilled`, and the fractions `accuracy`, `low`, `high` and `visual_flops`; the dense
            model first. It is blue, distilled models are orange, others grey.
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


def families_picture(models: Mapping[str, Mapping[str, Accuracy]]) -> Figure:
    """Accuracy by question family: model name -> family -> accuracy. Whiskers are 95 % intervals."""
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    families = list(next(iter(models.values())))
    width = 0.8 / len(models)
    for number, (color, (name, accuracies)) in enumerate(zip(SERIES, models.items(), strict=False)):
        places = [index + (number - (len(models) - 1) / 2) * width for index in range(len(families))]
        values = [accuracies[family] for family in families]
        heights = [value.accuracy for value in values]
        whiskers = [[v.accuracy - v.low for v in values], [v.high - v.accuracy for v in values]]
        axes.bar(places, heights, width * 0.92, color=color, label=label(name))
        axes.errorbar(places, heights, whiskers, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
        for place, value in zip(places, values, strict=True):
            axes.text(place, value.high + 0.015, f"{100 * value.accuracy:.0f}", ha="center", fontsize=8, color=INK)
    axes.set(
        xticks=range(len(families)),
        xticklabels=families,
        ylim=(0, 1.1),
        yticks=(0, 0.25, 0.5, 0.75, 1),
        ylabel="accuracy",
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.tick_params(axis="x", length=0)
    figure.legend(loc="outside upper right", ncols=len(models), frameon=False)
    plain(axes, grid="y")
    return figure


class _Cell:
    """One cell of the plan picture: the share of dense work done (0 to 1), and whether planned work is dead."""

    def __init__(self, share: float, dead: bool):
        self.share, self.dead = share, dead
        self.text = f"{100 * share:.3g}" if 0 < share < 1 else ""


def _plan_rows(plan: VisualPlan, num_units: int, intermediate_size: int) -> list[tuple[str, list[_Cell]]]:
    """Rows of the plan picture, top to bottom: label and one cell per layer. Dead: planned, but not executed."""
    pairs = list(zip(plan.layers, plan.live(num_units, intermediate_size), strict=True))

    def cells(planned: Callable[[LayerPlan], float], live: Callable[[LiveLayer], float]) -> list[_Cell]:
        return [
            _Cell(live(done), dead=layer.tokens > 0 and planned(layer) > 0 and live(done) == 0) for layer, done in pairs
        ]

    sight = cells(lambda layer: layer.attend, lambda live: live.attend)
    for cell, (_, live) in zip(sight, pairs, strict=True):
        if live.radius is not None:
            cell.share, cell.text = 0.25, f"{live.radius}{'±' if live.bidirectional else ''}"
    return [
        ("tokens carried, %", cells(lambda layer: layer.tokens, lambda live: live.tokens)),
        ("updated by attention", cells(lambda layer: layer.attend, lambda live: live.attend)),
        ("sight (radius; ±: both ways)", sight),
        (
            "updated by FFN: neurons, %",
            cells(
                lambda layer: num_served(layer.ffn, intermediate_size), lambda live: live.num_ffn / intermediate_size
            ),
        ),
        (
            "heads that serve, %",
            cells(
                lambda layer: num_served(layer.heads, num_units) * (layer.attend or layer.read),
                lambda live: live.num_heads / num_units,
            ),
        ),
        ("read by text", cells(lambda layer: layer.read, lambda live: live.read)),
    ]


def _draw_cell(axes: Axes, layer: int, row: int, cell: _Cell, fontsize: float) -> None:
    axes.add_patch(
        Rectangle(
            (layer - 0.46, row - 0.42),
            0.92,
            0.84,
            facecolor=shade(cell.share),
            edgecolor=FAINT,
            linewidth=0.8,
            hatch="////" if cell.dead else None,
        )
    )
    axes.text(
        layer, row, cell.text, ha="center", va="center", fontsize=fontsize, color=PAPER if cell.share > 0.6 else INK
    )


def shade(share: float) -> tuple[float, float, float]:
    """White for 0; from pale to full blue for more, so that a little is still seen."""
    if share == 0:
        return (1.0, 1.0, 1.0)
    strength = 0.18 + 0.82 * share
    blue = [int(BLUE[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (1 - strength * (1 - channel) for channel in blue)
    return (red, green, blue)


def _small(num_layers: int) -> float:
    """Font size for text inside a layer's column."""
    return max(4.5, min(9.0, 200 / num_layers))


def _smooth(values: Sequence[float]) -> list[float]:
    """Mean over a centred window of a tenth of the curve, shorter at its ends."""
    reach = len(values) // 20
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def label(name: str) -> str:
    """A name as plain text (no dollar opens a formula), shortened to what fits beside a picture."""
    return (name if len(name) <= 40 else name[:39] + "…").replace("$", r"\$")


def plain(axes: Axes, grid: str | None = None) -> None:
    """No box, quiet ticks, and a faint grid along one axis."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
    if grid:
        axes.grid(axis=grid, color=FAINT, linewidth=0.7)
        axes.set_axisbelow(True)
