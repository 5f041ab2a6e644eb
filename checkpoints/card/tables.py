"""The tables of a model card: the plan, what it costs, and what was measured."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

from transformers import PreTrainedConfig

from checkpoints.families import reference_images, vision_macs
from modeling.visual_flops import DecoderShape, dense_cost, plan_cost
from modeling.visual_plan import LiveLayer, VisualPlan

# In the order of PlanCost's fields.
CONVENTIONS = (
    "A: multiply-accumulates, visual tokens",
    "B: FLOPs, visual tokens",
    "C: FLOPs, decoder prefill",
    "D: FLOPs, with vision tower and projector",
)

BENCHMARK_COLUMNS = ("benchmark", "metric", "questions", "dense", "sparse", "difference", "kept", "p", "blind")
RANGE, UNBROKEN = r"(?<=[\d%]) to (?=[-+\d])", "\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}"
SPEED_PHASES = {
    "prefill": "prefill",
    "prefill_in_graph": "prefill as a CUDA graph",
    "prefill_with_vision": "prefill with vision tower",
}
"""Key of a phase in benchmark.json -> its name. A phase that was not measured is null there."""


def plan_table(plan: VisualPlan, config: PreTrainedConfig) -> str:
    """Returns the plan as it is executed, without dead work, as a Markdown table.

    Equal neighbouring layers share a row.
    """
    decoder = DecoderShape.from_config(config.text_config)
    table = [
        ("layers", "visual tokens", "attention update", "read by text", "head units", "FFN neurons", "neighbourhood")
    ]
    numbered = enumerate(decoder.live_layers(plan))
    for row, group in itertools.groupby(numbered, key=lambda numbered_layer: _plan_row(numbered_layer[1], decoder)):
        indices = [index for index, _ in group]
        table.append((str(indices[0]) if len(indices) == 1 else f"{indices[0]}–{indices[-1]}", *row))
    return markdown(table)


def _plan_row(layer: LiveLayer, decoder: DecoderShape) -> tuple[str, ...]:
    if layer.tokens == 0:
        return ("none",) + ("–",) * 5
    direction = "both ways" if layer.bidirectional else "causal"
    return (
        f"{layer.tokens:.0%}",
        "yes" if layer.attend else "no",
        "yes" if layer.read else "no",
        f"{layer.num_heads} of {decoder.num_kv_heads}",
        f"{layer.num_ffn} of {decoder.intermediate_size}",
        "all" if layer.radius is None else f"radius {layer.radius}, {direction}",
    )


def cost_table(plan: VisualPlan, config: PreTrainedConfig) -> str:
    """Returns what one picture costs, for the dense model and under the plan, as a Markdown table.

    Its rows are the conventions A to D: multiply-accumulates in A, FLOPs in B to D.
    """
    decoder, images = DecoderShape.from_config(config.text_config), reference_images(config)
    vision = vision_macs(config, images)
    sparse, dense = (
        cost(*subject, decoder, images, vision_macs=vision)
        for cost, subject in ((plan_cost, (plan,)), (dense_cost, ()))
    )
    table = [("convention", "dense", "this model", "left")]
    for label, before, after in zip(CONVENTIONS, astuple(dense), astuple(sparse), strict=True):
        table.append((label, f"{before:.3g}", f"{after:.3g}", f"{after / before:.1%}"))
    return markdown(table)


def benchmark_rows(benchmarks: Mapping[str, dict]) -> list[tuple[str, ...]]:
    """Returns the comparison on benchmarks as a table of texts: its head, a row for each, and the mean share kept.

    Args:
        benchmarks: name of each -> {title, metric, count, dense, sparse, difference, low, high, kept, p_value, blind}.
            Values are in the benchmark's own units. `kept` is a share; it, `p_value` and `blind` may be None.
    """
    table = [BENCHMARK_COLUMNS]
    for row in benchmarks.values():
        table.append(
            (
                row["title"],
                row["metric"],
                f"{row['count']:,}",
                f"{row['dense']:.1f}",
                f"{row['sparse']:.1f}",
                f"{row['difference']:+.1f} ({row['low']:+.1f} to {row['high']:+.1f})",
                _share(row["kept"]),
                "–" if row["p_value"] is None else f"{row['p_value']:.2g}",
                "–" if row["blind"] is None else f"{row['blind']:.1f}",
            )
        )
    mean = mean_share([row["kept"] for row in benchmarks.values()])
    return [*table, ("mean", "", "", "", "", "", _share(mean), "", "")]


def mean_share(kept: Sequence[float | None]) -> float | None:
    """Returns the mean of the shares that are kept; None if one of them is None."""
    known = [share for share in kept if share is not None]
    return math.fsum(known) / len(known) if len(known) == len(kept) else None


def comparison_table(rows: Sequence[dict]) -> str:
    """Returns the rows of the comparison, as `model_card` takes them, as a Markdown table."""
    families = list(rows[0]["families"])
    table = [("model", "distilled", "visual FLOPs", "model FLOPs", "accuracy", "95 % interval", "relative", *families)]
    for row in rows:
        table.append(
            (
                row["name"],
                "yes" if row["distilled"] else "no",
                *(f"{row[key]:.1%}" for key in ("visual_flops", "model_flops", "accuracy")),
                f"{row['low']:.1%} to {row['high']:.1%}",
                "–" if row["relative_accuracy"] is None else f"{row['relative_accuracy']:.1%}",
                *(f"{row['families'][family]:.1%}" for family in families),
            )
        )
    return markdown(table)


def speed_rows(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Returns what was measured on the clock as a table of texts: its head, and a row for each batch size and phase.

    What was not measured has no row.

    Args:
        figures: as in benchmark.json of a run. Times are medians in seconds. Peak memory, in bytes, is None where it
            was not measured, as is `prefill_in_graph`.
    """
    table = [("batch", "measured", "dense", "this model", "ratio")]
    for row in figures["batches"]:
        batch = str(row["batch_size"])
        for phase, label in SPEED_PHASES.items():
            if row[phase] is None:
                continue
            dense, sparse = (f"{1000 * row[phase][model]['median']:.1f} ms" for model in ("dense", "sparse"))
            table.append((batch, label, dense, sparse, f"× {row[phase]['speedup']:.2f}"))
        rate = row["decode"]["tokens_per_second"]
        dense, sparse = (f"{rate[model]:.1f} tokens/s" for model in ("dense", "sparse"))
        table.append((batch, "decode", dense, sparse, f"× {row['decode']['speedup']:.2f}"))
        if row["peak_memory_bytes"] is not None:
            dense, sparse = (row["peak_memory_bytes"][model] / 2**20 for model in ("dense", "sparse"))
            table.append((batch, "peak memory", f"{dense:,.0f} MiB", f"{sparse:,.0f} MiB", f"{sparse / dense:.1%}"))
    dense, sparse = (figures["kv_bytes"]["measured"][model] / 2**10 for model in ("dense", "sparse"))
    table.append(
        ("", "keys and values of a prompt", f"{dense:,.0f} KiB", f"{sparse:,.0f} KiB", f"{sparse / dense:.1%}")
    )
    return table


def speed_conditions(figures: Mapping[str, Any]) -> str:
    """Returns in words on what the figures of `speed_rows` were measured."""
    found = figures["environment"]
    threads = "" if found["device"] != "cpu" else f" with {found['threads']} thread{'s' * (found['threads'] != 1)}"
    return (
        f"One picture and {figures['shape']['text_tokens']} text tokens a prompt, {found['dtype']}, {found['device']}"
        f"{threads}, torch {found['torch']}, transformers {found['transformers']}. They took turns in one process."
    )


def markdown(table: list[tuple[str, ...]]) -> str:
    """Returns a table as Markdown. Its first row is the head. An interval, as "1 to 2", stands on one line."""
    header, *body = ("| " + " | ".join(re.sub(RANGE, UNBROKEN, cell) for cell in row) + " |" for row in table)
    return "\n".join((header, "|" + "---|" * len(table[0]), *body))


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
