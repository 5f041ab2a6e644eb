"""Plots of plans: one plan layer by layer with what it costs, and several plans side by side.

Every function returns a matplotlib `Figure` and keeps no global state.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from modeling.layer_plan import LayerPlan, num_served
from modeling.visual_plan import LiveLayer, VisualPlan
from training.report.numbers import percent
from training.report.style import BLUE, FAINT, INK, PAPER, WIDTH, label, plain, shade

PLANS_ACROSS = 5
"""The most plans that stand in one row of `plans_plot`."""


def plan_plot(plan: VisualPlan, num_units: int, intermediate_size: int, layer_flops: Sequence[float]) -> Figure:
    """Plots what each decoder layer does for visual tokens, and what that costs.

    Args:
        num_units: attention units (key/value groups) in a layer of the decoder.
        intermediate_size: FFN neurons in a layer of the decoder.
        layer_flops: visual FLOPs of each layer, as a fraction of the same layer's in the dense model.

    Raises:
        UserError: the plan does not fit these sizes.
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


def plans_plot(plans: Mapping[str, VisualPlan], num_units: int, intermediate_size: int) -> Figure:
    """Plots plans side by side, with their layers from top to bottom.

    For each layer it shows four shares: of the visual tokens that are carried, of the heads through which text reads
    them, of the heads in which they attend, and of the FFN neurons that serve them.

    Args:
        plans: name of each plan -> plan. All have the same number of layers.
        num_units: attention units (key/value groups) in a layer of the decoder.
        intermediate_size: FFN neurons in a layer of the decoder.
    """
    columns = {
        "tokens": lambda live: live.tokens,
        "read": lambda live: live.num_heads / num_units if live.read else 0.0,
        "attend": lambda live: live.num_heads / num_units if live.attend else 0.0,
        "FFN": lambda live: live.num_ffn / intermediate_size,
    }
    num_layers = len(next(iter(plans.values())))
    across = min(len(plans), PLANS_ACROSS)
    down = math.ceil(len(plans) / across)
    figure = Figure(figsize=(max(3.0, 2.1 * across), (1.4 + 0.24 * num_layers) * down), layout="constrained")
    panels = figure.subplots(down, across, sharey=True, squeeze=False)
    for axes in panels.flat[len(plans) :]:
        axes.set_visible(False)
    for axes, (name, plan) in zip(panels.flat, plans.items(), strict=False):
        for layer, live in enumerate(plan.live(num_units, intermediate_size)):
            for column, share in enumerate(value(live) for value in columns.values()):
                axes.add_patch(
                    Rectangle(
                        (column - 0.46, layer - 0.44),
                        0.92,
                        0.88,
                        facecolor=shade(share),
                        edgecolor=FAINT,
                        linewidth=0.6,
                    )
                )
                text = f"{100 * share:.0f}" if 0 < share < 1 else ""
                color = "white" if share > 0.6 else INK
                axes.text(column, layer, text, ha="center", va="center", fontsize=min(7, 160 / num_layers), color=color)
        axes.set(xlim=(-0.6, len(columns) - 0.4), ylim=(num_layers - 0.4, -0.6), xticks=range(len(columns)))
        axes.set_xticklabels(columns, fontsize=8)
        axes.set_title(label(name), fontsize=9, color=INK)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=9, integer=True))
        plain(axes)
        axes.tick_params(length=0, labelsize=8)
    for row in panels:
        row[0].set_ylabel("decoder layer", fontsize=9, color=INK)
    return figure


class _Cell:
    """One cell of the plan plot.

    Args:
        share: share of the dense model's work that is done, in [0, 1].
        dead: whether work is planned but not done.
    """

    def __init__(self, share: float, dead: bool):
        self.share, self.dead = share, dead
        self.text = f"{100 * share:.3g}" if 0 < share < 1 else ""


def _plan_rows(plan: VisualPlan, num_units: int, intermediate_size: int) -> list[tuple[str, list[_Cell]]]:
    """Returns the rows of the plan plot from top to bottom. Each is a label and one cell per layer.

    A cell is dead where work is planned but not executed, as nothing later reads its result.
    """
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


def _small(num_layers: int) -> float:
    """Returns the font size of text that fits into a layer's column."""
    return max(4.5, min(9.0, 200 / num_layers))
