"""Plots of a plan being learned: how the gates close over the steps, and how the cost falls to the budget.

Every function returns a matplotlib `Figure` and keeps no global state.
"""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.report.numbers import percent
from training.report.style import BLUE, GREY, INK, ORANGE, WIDTH, plain, steps_across

TITLES = {"read": "heads read by text", "attend": "heads that update visual tokens", "ffn": "FFN neurons"}


def gates_plot(history: Sequence[Mapping]) -> Figure:
    """Plots what serves vision while the plan is learned. Layers run from top to bottom, steps from left to right.

    Args:
        history: rows of gates.jsonl. Each has `step`, and for each kind of work one expected share per layer.
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
        axes.xaxis.set_major_locator(MaxNLocator(nbins=3, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=9, integer=True))
        axes.tick_params(colors=INK, labelsize=8)
    panels[0].set_ylabel("decoder layer", fontsize=9, color=INK)
    figure.supxlabel("optimizer step", fontsize=9, color=INK)
    bar = figure.colorbar(image, ax=list(panels), pad=0.01)
    bar.set_label("expected share", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK)
    return figure


def budget_plot(metrics: Sequence[Mapping], budget: float, hard_cost: float) -> Figure:
    """Plots the expected cost of the gates over the steps, with its falling target, the budget and the final cost.

    The final cost is that of the plan that the gates were hardened into. Every cost is a share of the dense model's.

    Args:
        metrics: rows of metrics.jsonl that have `step`, `cost` and `target`.
        budget: the most that the plan may cost.
        hard_cost: cost of the plan that the gates were hardened into.
    """
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = figure.subplots()
    steps = [row["step"] for row in metrics]
    axes.plot(steps, [row["target"] for row in metrics], color=GREY, linewidth=1.5, linestyle="--", label="target")
    axes.plot(steps, [row["cost"] for row in metrics], color=BLUE, linewidth=2, label="gates, expected")
    axes.axhline(budget, color=INK, linewidth=0.8, label=f"budget, {percent(budget)}")
    axes.plot(steps[-1], hard_cost, "o", color=ORANGE, label=f"hard plan, {percent(hard_cost)}")
    steps_across(axes)
    axes.set_ylabel("cost left")
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
    figure.legend(loc="outside upper right", ncols=4, frameon=False)
    plain(axes, grid="y")
    return figure
