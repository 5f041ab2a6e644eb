"""Plots of a search: what it measured and what plan it found, read from the folder of the search (training/planners).

They show the share of visual tokens that each layer carries, the curve of VTW with its tolerance, and the trials of
Bayesian optimisation.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from modeling.visual_plan import VisualPlan
from training.files import read_json
from training.planners.planner import Planner
from training.planners.tools.trials import TRIALS, read_trials
from training.planners.vtw import CURVE, VtwPlanner
from training.report.numbers import percent
from training.report.style import BLUE, FAINT, GREEN, GREY, INK, ORANGE, VERMILION, WIDTH, plain


def search_plot(plan: VisualPlan, visual_flops: float, settings: Planner, folder: Path) -> Figure:
    """Plots how many visual tokens each layer of a plan carries. Below it stands what the search measured, if anything.

    Args:
        plan: the plan that was found.
        visual_flops: visual FLOPs of the plan, as a share of the dense model's.
        settings: the planner that found it.
        folder: folder of the search. It may be missing or empty.
    """
    curve, trials = folder / CURVE, folder / TRIALS
    measured = curve.exists() or trials.exists()
    figure = Figure(figsize=(WIDTH, 6.4 if measured else 3.2), layout="constrained")
    panels = figure.subplots(2 if measured else 1, 1, squeeze=False)[:, 0]
    figure.suptitle(
        f"{settings.planner} plan: {percent(visual_flops)} of the dense model's visual FLOPs", fontsize=12, color=INK
    )
    _schedule(panels[0], plan)
    if measured:
        match settings.plot:
            case "withdrawals":
                _withdrawals(panels[1], read_json(curve), plan, settings)
            case "shares":
                _shares_tried(panels[1], read_trials(trials))
            case "slopes":
                _slopes_tried(panels[1], read_trials(trials)["k"])
    return figure


def _schedule(axes: Axes, plan: VisualPlan) -> None:
    shares = [layer.tokens for layer in plan.layers]
    axes.stairs(shares, [index - 0.5 for index in range(len(shares) + 1)], fill=True, color=BLUE, alpha=0.25)
    axes.stairs(shares, [index - 0.5 for index in range(len(shares) + 1)], color=BLUE, linewidth=2)
    axes.set(xlabel="decoder layer", ylabel="visual tokens carried", ylim=(0, 1.05), xlim=(-0.5, len(shares) - 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    plain(axes, grid="y")


def _withdrawals(axes: Axes, curve: Sequence[dict], plan: VisualPlan, settings: VtwPlanner) -> None:
    layers = [point["layer"] for point in curve]
    names = {"kl": ("searched on", BLUE, "-")}
    if curve[0]["kl_hold_out"] is not None:
        names["kl_hold_out"] = ("held out", ORANGE, "--")
    for key, (name, color, line) in names.items():
        # The last point is the dense model. Its KL is 0, which a logarithmic axis cannot show.
        axes.plot(
            layers,
            [point[key] or math.nan for point in curve],
            line,
            marker="o",
            color=color,
            linewidth=1.8,
            label=name,
        )
    axes.axhline(settings.tolerance, color=VERMILION, linewidth=1.2, label=f"tolerance {settings.tolerance:g}")
    chosen = next((index for index, layer in enumerate(plan.layers) if layer.tokens == 0), len(plan))
    axes.axvline(chosen, color=GREEN, linewidth=1.2, label=f"chosen: {chosen}")
    axes.set(xlabel="first layer without visual tokens", ylabel="KL of the answers, nats", yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.figure.legend(loc="outside lower right", ncols=4, frameon=False, fontsize=9)
    plain(axes, grid="y")


def _shares_tried(axes: Axes, searches: dict[str, list[tuple[float, float]]]) -> None:
    """Plots the shares that were tried. The `worth` of a share within the tolerance is the share, else more than 1."""
    number, ticks = 0, []
    for name, trials in searches.items():
        ticks.append((number + (len(trials) - 1) / 2, name.rsplit(maxsplit=1)[-1]))
        for share, worth in trials:
            within = worth <= 1
            axes.plot(
                number,
                share,
                "o",
                color=BLUE if within else GREY,
                markerfacecolor=BLUE if within else "none",
                markersize=5,
            )
            number += 1
        least = min(share for share, worth in trials if worth <= 1)
        axes.plot((number - len(trials), number - 1), (least, least), color=ORANGE, linewidth=1.8)
        axes.axvline(number - 0.5, color=FAINT, linewidth=0.7)
    for marker, name in (
        ({"markerfacecolor": BLUE}, "within the tolerance"),
        ({"markerfacecolor": "none", "color": GREY}, "outside"),
    ):
        axes.plot([], [], "o", **({"color": BLUE} | marker), label=name)
    axes.plot([], [], color=ORANGE, linewidth=1.8, label="taken")
    axes.set(xlabel="trials, of each layer's share", ylabel="share tried", ylim=(-0.03, 1.05))
    axes.set_xticks([place for place, _ in ticks], [name for _, name in ticks])
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.figure.legend(loc="outside lower right", ncols=4, frameon=False, fontsize=9)
    plain(axes)


def _slopes_tried(axes: Axes, trials: list[tuple[float, float]]) -> None:
    slopes, divergences = zip(*trials, strict=True)
    points = axes.scatter(
        slopes, divergences, c=range(1, len(trials) + 1), cmap="Blues", s=36, edgecolors=INK, linewidths=0.4
    )
    best = min(trials, key=lambda trial: trial[1])
    axes.plot(
        *best,
        "o",
        color=ORANGE,
        markersize=12,
        markerfacecolor="none",
        markeredgewidth=2,
        label=f"taken: k = {best[0]:.3g}",
    )
    scale = "log" if min(divergences) > 0 else "linear"  # where the budget lets all tokens stay, every KL is 0
    axes.set(xlabel="k, how steeply shares fall", ylabel="KL of the answers, nats", xscale="log", yscale=scale)
    axes.figure.colorbar(points, ax=axes, label="trial")
    axes.figure.legend(loc="outside lower right", ncols=4, frameon=False, fontsize=9)
    plain(axes, grid="y")
