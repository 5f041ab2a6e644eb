"""The model card of a sparse checkpoint, README.md.

It holds the metadata that the Hub reads, the plan, what the plan costs, and what was measured.
"""

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from types import MappingProxyType

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedConfig
from yaml import YAMLError

from checkpoints.families import reference_images, vision_macs
from modeling.user_error import UserError
from modeling.visual_flops import DecoderShape, dense_cost, plan_cost
from modeling.visual_plan import LiveLayer, VisualPlan

# In the order of PlanCost's fields.
CONVENTIONS = (
    "A: multiply-accumulates, visual tokens",
    "B: FLOPs, visual tokens",
    "C: FLOPs, decoder prefill",
    "D: FLOPs, with vision tower and projector",
)

LOADING = """```python
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "path or Hub id of this checkpoint"
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
```"""

BENCHMARK_COLUMNS = ("benchmark", "metric", "questions", "dense", "sparse", "difference", "kept", "p", "blind")
BENCHMARKS_CAPTION = """Dense and sparse model answered the same questions in the same harness. Behind the difference
is its 95 % interval, by a bootstrap over pictures. p is that of McNemar's test; blind is the dense model that is shown
grey pictures."""


def model_card(
    name: str,
    plan: VisualPlan,
    config: PreTrainedConfig,
    *,
    base_model: str,
    base_license: str | None = None,
    rows: Sequence[dict] = (),
    benchmarks: Mapping[str, dict] = MappingProxyType({}),
    picture: str | None = None,
) -> str:
    """Returns the text of README.md.

    Args:
        name: the title.
        plan: the plan in force.
        config: the dense or the sparse config. It holds the model's sizes.
        base_model: folder or Hub id of the dense model. Only a Hub id goes into the metadata.
        base_license: the dense model's licence, as the Hub names it. It holds for this checkpoint too.
        rows: rows of the comparison. Each has `name`, `distilled`, `visual_flops`, `model_flops`, `accuracy`, `low`,
            `high`, `relative_accuracy` and `families`, a mapping from a family's name to its accuracy. Shares and
            accuracies are fractions. `relative_accuracy` is None where the dense model answers nothing right.
        benchmarks: name of each benchmark -> its comparison, as `benchmark_rows` takes it.
        picture: file name of the plan's picture beside the card.

    Raises:
        UserError: the plan does not fit the model.
    """
    local = Path(base_model).exists()  # a local path is of no use to others, and may tell what it should not
    metadata = ModelCardData(
        license=base_license,
        base_model=None if local else base_model,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["squint", "sparse", config.model_type.removeprefix("sparse_")],
    )
    base = f"`{Path(base_model).name}`" if local else f"[{base_model}](https://huggingface.co/{base_model})"
    licence = f"Licence: {base_license}, as the base model's." if base_license else "The base model's licence holds."
    sections = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {name}",
        f"{base}, made to spend less computation on its visual tokens by Squint. {licence}",
        "## How to load",
        f"{LOADING}\n\nThe stock class refuses this checkpoint rather than run it dense.",
        "## Plan",
        "What each decoder layer does for visual tokens. Text is served in full by every layer.",
        *([f"![The plan, layer by layer]({picture})"] if picture else []),
        plan_table(plan, config),
        "## Cost",
        "One picture and 64 text tokens, prefill, in the four conventions of the literature.",
        cost_table(plan, config),
    ]
    if rows:
        caption = "Accuracy of generated answers on held-out questions, with its 95 % interval."
        sections += ["## Measured", caption, _comparison_table(rows)]
    if benchmarks:
        sections += ["## Benchmarks", BENCHMARKS_CAPTION, _markdown(benchmark_rows(benchmarks))]
    return "\n\n".join(sections) + "\n"


def base_license(path: str | os.PathLike) -> str | None:
    """Returns the licence that the base model's own card states.

    Returns:
        The licence as the Hub names it. None where no card is within reach, or where the card states none.

    Raises:
        UserError: there is a card, and its metadata cannot be read.
    """
    source = path
    if Path(path).is_dir():
        source = Path(path) / "README.md"
        if not source.is_file():
            return None
    try:
        return ModelCard.load(source).data.license
    except (OSError, HFValidationError):  # HFValidationError: the Hub has no such names
        return None
    except (ValueError, YAMLError) as error:
        raise UserError(f"{source}: not a model card that can be read ({error})") from None


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
    return _markdown(table)


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
    return _markdown(table)


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


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _comparison_table(rows: Sequence[dict]) -> str:
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
    return _markdown(table)


def _markdown(table: list[tuple[str, ...]]) -> str:
    header, *body = ("| " + " | ".join(row) + " |" for row in table)
    return "\n".join((header, "|" + "---|" * len(table[0]), *body))
