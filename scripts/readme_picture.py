"""Draws docs/images/frontier.png, the picture of README.md, from the first table of docs/results.md that has budgets.

python scripts/readme_picture.py
"""

import argparse
import re
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from modeling.user_error import UserError
from training import cli
from training.report.style import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, plain, save

ROOT = Path(__file__).resolve().parents[1]
TABLE, PICTURE = ROOT / "docs" / "results.md", ROOT / "docs" / "images" / "frontier.png"
COLORS = {
    "learned": BLUE,
    "greedy": VERMILION,
    "yopo": ORANGE,
    "vica": GREEN,
    "shortv": PURPLE,
    "random": GREY,
    "uniform": GREY,
}
CELL = re.compile(r"([\d.]+) % \(([\d.]+) to ([\d.]+)\), at ([\d.]+) %")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PICTURE.parent.mkdir(exist_ok=True)
    save(picture(read_points(TABLE.read_text(encoding="utf-8"))), PICTURE)
    Image.open(PICTURE).quantize(64).save(PICTURE, optimize=True)  # a third of the bytes, and nobody sees it
    print(f"written: {PICTURE.relative_to(ROOT)}")


def read_points(page: str) -> dict[str, list[tuple[float, float, float, float]]]:
    """Returns planner: its points, each (visual FLOPs, accuracy, low, high) in percent, cheapest first.

    Raises:
        UserError: the page has no table of planners at budgets.
    """
    _, found, table = page.partition("| planner | budget 25% |")
    if not found:
        raise UserError(f"{TABLE.name}: it has no table that begins '| planner | budget 25% |'")
    points = {}
    for line in table.split("\n\n")[0].splitlines()[2:]:
        name = line.split("|")[1].strip()
        rows = [tuple(map(float, cell)) for cell in CELL.findall(line)]
        points[name] = sorted({(cost, accuracy, low, high) for accuracy, low, high, cost in rows})
    return points


def picture(points: dict[str, list[tuple[float, float, float, float]]]) -> Figure:
    """Returns accuracy against visual FLOPs, a line for each planner."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, rows in points.items():
        cost, accuracy, low, high = zip(*rows, strict=True)
        strong = name == "learned"
        axes.plot(
            cost,
            accuracy,
            "o-" if name != "uniform" else "s-",
            color=COLORS[name],
            linewidth=2.4 if strong else 1.3,
            markersize=6 if strong else 4.5,
            zorder=3 if strong else 2,
            label=name,
        )
        if strong:
            axes.fill_between(cost, low, high, color=COLORS[name], alpha=0.15, linewidth=0)
    axes.set(xlabel="visual FLOPs left, of the dense model's", ylabel="accuracy, of the dense model's", xscale="log")
    axes.set_xticks([2, 4, 8, 12, 25])
    axes.minorticks_off()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(decimals=0))
    plain(axes, grid="y")
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower right")
    return figure


if __name__ == "__main__":
    cli.run(main)
