"""Measures a sparse model against its dense model on the clock, in one process, on the same weights.

    python scripts/benchmark.py --model runs/tiny_sparse/checkpoint --json benchmark.json
    python scripts/benchmark.py --hidden-size 1024 --layers 16 --plan-of runs/tiny_sparse/checkpoint
    python scripts/benchmark.py --config recipes/shapes/llava-1.5-7b.json --plan plan.json --dtype bfloat16

It reports prefill, decoding, key/value bytes, peak memory (on a GPU) and FLOPs in the four conventions, then the time
of attention within a radius on ever larger pictures. --json writes the figures, and a plot (.png) beside them where
matplotlib is installed. Nothing but torch and transformers is needed.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import PreTrainedModel

from checkpoints.config import read_config
from checkpoints.families import is_sparse
from checkpoints.sparse import load_sparse
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from modeling.whole_file import whole_file
from training.cli import run
from training.measure.clock.benchmark import benchmark
from training.measure.clock.neighbors import time_neighbor_attention
from training.measure.clock.shapes import carried_plan, random_model, shape_of_file, shape_of_sizes

try:
    from training.measure.clock.benchmark_plot import benchmark_plot
except ModuleNotFoundError:  # matplotlib is not installed
    benchmark_plot = None

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, help="folder of a sparse checkpoint")
    source.add_argument("--config", type=Path, help="random weights in the shape of this config JSON")
    source.add_argument("--hidden-size", type=int, help="random weights in a shape of this width; see --layers")
    parser.add_argument("--layers", type=int, default=16, help="decoder layers, with --hidden-size (default 16)")
    parser.add_argument(
        "--visual-tokens", type=int, default=576, help="a square number, with --hidden-size (default 576)"
    )
    plan = parser.add_mutually_exclusive_group()
    plan.add_argument("--plan", type=Path, help="plan file for the shape; default: the model's own, or the dense plan")
    plan.add_argument(
        "--plan-of", type=Path, help="folder of a sparse checkpoint whose plan's fractions the shape takes"
    )
    parser.add_argument(
        "--text-tokens", type=int, default=64, help="of the prompt, half before the picture (default 64)"
    )
    parser.add_argument("--batch-sizes", default="1,4", help="comma-separated (default 1,4)")
    parser.add_argument("--decode-tokens", type=int, default=16, help="greedy steps timed after a prefill (default 16)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements per figure (default 5)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (default float32)")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: a GPU if there is one"
    )
    parser.add_argument("--radius", type=int, default=2, help="of the neighbour section (default 2)")
    parser.add_argument("--neighbour-sides", default="32,64,128", help="grid sides of that section; empty: none")
    parser.add_argument("--json", type=Path, help="write the figures here, and a plot beside them")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    for name in ("text_tokens", "decode_tokens", "repeats"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: got {getattr(arguments, name)}, allowed: 1 or more")
    if arguments.radius < 0:
        raise UserError(f"--radius: got {arguments.radius}, allowed: 0 or more")
    if arguments.json is not None and arguments.json.suffix != ".json":
        raise UserError(f"--json: got {arguments.json}, allowed: a name that ends in .json (the plot ends in .png)")
    batch_sizes = positive_integers("--batch-sizes", arguments.batch_sizes)
    sides = positive_integers("--neighbour-sides", arguments.neighbour_sides) if arguments.neighbour_sides else []

    model = read_model(arguments)
    report = benchmark(
        model,
        text_tokens=arguments.text_tokens,
        batch_sizes=batch_sizes,
        decode_tokens=arguments.decode_tokens,
        repeats=arguments.repeats,
        print_line=lambda line: print(line, flush=True),
    )
    if sides:
        report["neighbours"] = time_neighbor_attention(
            sides,
            radius=arguments.radius,
            num_heads=8,
            head_dim=64,
            text_tokens=arguments.text_tokens // 2,
            dtype=DTYPES[arguments.dtype],
            device=arguments.device,
            repeats=arguments.repeats,
        )
    print_report(report)
    if arguments.json is not None:
        with whole_file(arguments.json) as file:
            file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        if benchmark_plot is None:
            print("no plot: matplotlib is not installed")
        else:
            with whole_file(arguments.json.with_suffix(".png")) as file:
                benchmark_plot(report).savefig(file, dpi=150, format="png")


def read_model(arguments: argparse.Namespace) -> PreTrainedModel:
    """Returns the sparse model that the command line describes."""
    dtype = DTYPES[arguments.dtype]
    if arguments.model is not None:
        if arguments.plan_of is not None:
            raise UserError("--plan-of: allowed only with --config or --hidden-size")
        model = read_checkpoint(arguments.model, dtype).to(arguments.device)
        if arguments.plan is not None:
            model.set_visual_plan(VisualPlan.load(arguments.plan))
        return model
    if arguments.config is not None:
        shape = shape_of_file(arguments.config)
    else:
        shape = shape_of_sizes(arguments.hidden_size, arguments.layers, arguments.visual_tokens)
    if arguments.plan is not None:
        plan = VisualPlan.load(arguments.plan)
    elif arguments.plan_of is not None:
        plan = carried_plan(arguments.plan_of, shape)
    else:
        plan = VisualPlan.dense(shape.text_config.num_hidden_layers)
    return random_model(shape, plan, dtype, arguments.device)


def read_checkpoint(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Returns the model of a sparse checkpoint. Raises UserError where there is none."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json there, so no checkpoint")
    if not is_sparse(read_config(folder)):
        raise UserError(
            f"{folder}: not a sparse checkpoint; scripts/sparsify.py makes one from a dense model and a plan"
        )
    return load_sparse(folder, dtype)


def positive_integers(option: str, text: str) -> list[int]:
    """Returns the comma-separated integers in the text of an option. Raises UserError where one is not 1 or more."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{option}: got {text!r}, allowed: comma-separated numbers of 1 or more")
    return [int(part) for part in parts]


def print_report(report: dict) -> None:
    """Prints the figures as plain text."""
    print(f"\n{'FLOPs, one sample':<34}{'dense':>14}{'sparse':>14}{'left':>9}")
    meaning = {"A": "visual MACs", "B": "visual FLOPs", "C": "decoder prefill", "D": "with the vision tower"}
    for letter, cost in report["flops"].items():
        print(f"{letter + '  ' + meaning[letter]:<34}{cost['dense']:>14.4g}{cost['sparse']:>14.4g}{cost['left']:>9.1%}")
    for name, counted in report["kv_bytes"].items():
        left = counted["sparse"] / counted["dense"]
        print(f"{'key/value bytes, ' + name:<34}{counted['dense']:>14,}{counted['sparse']:>14,}{left:>9.1%}")
    print(f"\n{'median (least .. greatest)':<34}{'dense':>26}{'sparse':>26}{'speed-up':>10}")
    for row in report["batches"]:
        for name, title in (
            ("prefill", "prefill"),
            ("prefill_in_graph", "prefill in a CUDA graph"),
            ("prefill_with_vision", "prefill with vision"),
            ("decode", "decode"),
        ):
            if row[name] is None:
                continue
            times = "".join(f"{in_milliseconds(row[name][model]):>26}" for model in ("dense", "sparse"))
            print(f"{title + ', batch ' + str(row['batch_size']):<34}{times}{row[name]['speedup']:>10.2f}")
        print(f"{'  of the FLOPs ratio':<34}{row['prefill']['speedup_over_flops_ratio']:>62.2f}")
        rate = row["decode"]["tokens_per_second"]
        print(f"{'  tokens per second':<34}{rate['dense']:>26.1f}{rate['sparse']:>26.1f}")
        memory = row["peak_memory_bytes"]
        if memory is not None:
            print(f"{'  peak memory of the prefill, bytes':<34}{memory['dense']:>26,}{memory['sparse']:>26,}")
    if report["batches"][0]["peak_memory_bytes"] is None:
        print("peak memory: measured on a GPU only")
    previous = None
    for row in report.get("neighbours", []):
        growth = "" if previous is None else f"  x {row['layer']['median'] / previous:.2f}"
        print(f"within radius {row['radius']}, {row['tokens']:>6} tokens: {in_milliseconds(row['layer'])}{growth}")
        previous = row["layer"]["median"]


def in_milliseconds(times: dict[str, float]) -> str:
    return "{median:.1f} ms ({least:.1f} .. {greatest:.1f})".format(
        **{name: 1000 * value for name, value in times.items()}
    )


if __name__ == "__main__":
    run(main)
