"""Pictures of a plan being learned: gates closing over the steps, the cost coming down to the budget, plans side by side.

As in training/report/plots.py, every function returns a matplotlib `Figure`.
"""

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from modeling.visual_plan import VisualPlan
from training.report.plots import BLUE, FAINT, GREY, INK, ORANGE, WIDTH, label, percent, plain, shade

PLANS_ACROSS = 5
TITLES = {"read": "heads read by text", "attend": "heads that update visual tokens", "ffn": "FFN neurons"}


def gates_picture(history: Sequence[Mapping]) -> Figure:
    """What serves vision while the plan is learned: layers from top to bottom, steps from left to right.

    Args:
        history: rows of gates.jsonl: `step` and, per kind of work, one expected share per layer.
    """
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    panels = figure.subplots(1, len(TITLES), sharey=True)
    steps, num_layers = [row["step"] for row in history], len(history[0]["read"])
    for axes, (kind, title) in zip(panels, TITLES.items(), strict=True):
        values = [[row[kind][layer] for row in history] for layer in range(num_layers)]
        image = axes.imshow(
            values,
            vmin=0,
            vmax=1,
            cmap="Blues",
            aspect="auto",
            interpolation="nearest",
            extent=(steps[0], max(steps[-1], steps[0] + 1), num_layers - 0.5, -0.5),
        )
        axes.set_title(title, fontsize=9, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=9, integer=True))
        axes.tick_params(colors=INK, labelsize=8)
    panels[0].set_ylabel("decoder layer", fontsize=9, color=INK)
    figure.supxlabel("optimizer step", fontsize=9, color=INK)
    bar = figure.colorbar(image, ax=list(panels), pad=0.01)
    bar.set_label("expected share", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK)
    return figure


def budget_picture(metrics: Sequence[Mapping], budget: float, hard: float) -> Figure:
    """The expected cost of the gates over the steps, its falling target, the budget, and what the hard plan costs.

    Args:
        metrics: rows of metrics.jsonl that have `step`, `cost` and `target`, shares of the dense model's.
    """
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = figure.subplots()
    steps = [row["step"] for row in metrics]
    axes.plot(steps, [row["target"] for row in metrics], color=GREY, linewidth=1.5, linestyle="--", label="target")
    axes.plot(steps, [row["cost"] for row in metrics], color=BLUE, linewidth=2, label="gates, expected")
    axes.axhline(budget, color=INK, linewidth=0.8)
    axes.annotate(
        f"budget {percent(budget)}", (steps[0], budget), (0, -10), textcoords="offset points", fontsize=8, color=INK
    )
    axes.plot(steps[-1], hard, "o", color=ORANGE, label=f"hard plan, {percent(hard)}")
    axes.set(xlabel="optimizer step", ylabel="cost left", yscale="log")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_minor_formatter(PercentFormatter(1, decimals=0))
    axes.legend(frameon=False, loc="upper right")
    plain(axes, grid="y")
    return figure


def plans_picture(plans: Mapping[str, VisualPlan], num_units: int, intermediate_size: int) -> Figure:
    """Plans side by side: layers from top to bottom; how many of the tokens are carried, how much of the heads reads and queries,
    and of the FFN serves them."""
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
