"""The plot of a benchmark: prefill and decode of the dense and the sparse model, and neighbour attention by size.

It is the only file behind scripts/benchmark.py that needs matplotlib.
"""

from matplotlib.figure import Figure

DENSE, SPARSE, INK = (
    "#8A8F98",
    "#0072B2",
    "#22272E",
)  # grey, and the blue of Okabe and Ito: colour-blind readers can tell them apart


def benchmark_plot(report: dict) -> Figure:
    """Plots the report of `training.measure.clock.benchmark.benchmark`.

    A third panel shows how the time of neighbour attention grows with the picture, if the report has `neighbours`.
    """
    neighbours = report.get("neighbours")
    figure = Figure(figsize=(12.8 if neighbours else 9.0, 3.8), layout="constrained")
    axes = figure.subplots(1, 3 if neighbours else 2)
    shape, environment = report["shape"], report["environment"]
    figure.suptitle(
        f"{shape['num_layers']} layers x {shape['hidden_size']}, "
        f"{shape['visual_tokens']} visual + {shape['text_tokens']} text tokens, "
        f"{environment['dtype']}, {environment['device']}: {report['flops']['B']['left']:.1%} of visual FLOPs left",
        fontsize=11,
        color=INK,
    )
    batches = report["batches"]
    ratio = report["flops"]["C"]["dense"] / report["flops"]["C"]["sparse"]
    _bars(
        axes[0],
        batches,
        {name: [1000 * row["prefill"][name]["median"] for row in batches] for name in ("dense", "sparse")},
        [f"x {row['prefill']['speedup']:.2f}" for row in batches],
        f"Prefill, ms (FLOPs promise x {ratio:.2f})",
    )
    _bars(
        axes[1],
        batches,
        {name: [row["decode"]["tokens_per_second"][name] for row in batches] for name in ("dense", "sparse")},
        [f"x {row['decode']['speedup']:.2f}" for row in batches],
        "Decode, tokens per second",
    )
    if neighbours:
        tokens = [row["tokens"] for row in neighbours]
        seconds = [1000 * row["layer"]["median"] for row in neighbours]
        axes[2].loglog(tokens, seconds, "o-", color=SPARSE, label="within a radius")
        quadratic = [seconds[0] * (count / tokens[0]) ** 2 for count in tokens]
        axes[2].loglog(tokens, quadratic, ":", color=DENSE, label="if it grew as the square")
        axes[2].set_xticks(tokens, [str(count) for count in tokens])
        axes[2].minorticks_off()
        axes[2].set_title(f"Attention within radius {neighbours[0]['radius']}, ms a layer", fontsize=10)
        axes[2].set_xlabel("visual tokens")
    named = {text: line for panel in axes for line, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _bars(axes, batches: list[dict], series: dict[str, list[float]], notes: list[str], title: str) -> None:
    """Draws two bars for each batch size, with a note over the sparse model's bar."""
    for offset, (name, colour) in zip((-0.2, 0.2), (("dense", DENSE), ("sparse", SPARSE)), strict=True):
        places = [index + offset for index in range(len(batches))]
        axes.bar(places, series[name], width=0.38, color=colour, label=name)
    for index, note in enumerate(notes):
        axes.annotate(note, (index + 0.2, series["sparse"][index]), ha="center", va="bottom", fontsize=9, color=INK)
    axes.set_xticks(range(len(batches)), [f"batch {row['batch_size']}" for row in batches])
    axes.margins(y=0.15)
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
