"""The look of every plot: colours, axes and names, and plots as bytes and files.

The colours are those of Okabe and Ito. Colour-blind readers can tell them apart. Plots of a plan use shades of one hue.
"""

import io
import os

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from modeling.whole_file import whole_file

BLUE, ORANGE, GREEN, VERMILION, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#8A8F98"
SERIES = (BLUE, ORANGE, GREY, GREEN, VERMILION, PURPLE)
INK, FAINT, PAPER = "#22272E", "#D5D9DE", "#FFFFFF"
WIDTH = 9.6
"""Width of a plot in inches. At 150 dpi it fills the report's column."""


def png(figure: Figure) -> bytes:
    """Returns the figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor=PAPER)
    return buffer.getvalue()


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes the figure as a PNG file. If the process is killed, `path` is as it was before."""
    with whole_file(path) as file:
        file.write_bytes(png(figure))


def shade(share: float) -> tuple[float, float, float]:
    """Returns white for a share of 0, and a blue from pale to full for more. So a small share is still seen."""
    if share == 0:
        return (1.0, 1.0, 1.0)
    strength = 0.18 + 0.82 * share
    blue = [int(BLUE[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (1 - strength * (1 - channel) for channel in blue)
    return (red, green, blue)


def label(name: str) -> str:
    """Returns a name as matplotlib shows it: at most 40 characters, and no dollar sign begins a formula."""
    return (name if len(name) <= 40 else name[:39] + "…").replace("$", r"\$")


def steps_across(axes: Axes) -> None:
    """Makes x the steps of a training, at whole numbers, and y logarithmic, with few ticks and all of them named."""
    axes.set(xlabel="optimizer step", yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.minorticks_off()


def plain(axes: Axes, grid: str | None = None) -> None:
    """Takes the box away, colours the ticks, and draws a faint grid along the axis `grid` ("x" or "y")."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
    if grid:
        axes.grid(axis=grid, color=FAINT, linewidth=0.7)
        axes.set_axisbelow(True)
