"""Asks a model, dense or sparse, the questions of a benchmark and scores the answers it generates.

    python scripts/evaluate.py --model checkpoints/tiny-llava
    python scripts/evaluate.py --model runs/tiny_sparse/checkpoint --dense checkpoints/tiny-llava --json evaluation.json

It prints a table with 95 % intervals. --json writes figures and every answer, and a plot (.png) beside them.
"""

import argparse
import time
from pathlib import Path

import torch
from rich.console import Console

from checkpoints.load import load_checkpoint
from data.sample import Sample
from data.shapes.questions import QUESTION_FAMILIES
from data.shapes.world import WORLDS, SplitSettings, WorldSettings, write_world
from data.sources.reading import load_samples
from data.sources.source import Source
from modeling.user_error import UserError
from training.cli import run
from training.files import write_json
from training.measure.evaluation import Evaluation, evaluate, relative_accuracy
from training.report.numbers import percent
from training.report.result_plots import families_plot
from training.report.style import save
from training.report.tables import families_table

# The questions of recipes/tiny_teacher.yaml. There are 200 of each family, which gives the accuracy in one family a
# standard error of at most 3.5 points.
TEST_WORLD = WorldSettings(seed=0, splits={"test": SplitSettings(part="test", rows=200 * len(QUESTION_FAMILIES))})


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a dense or a sparse checkpoint")
    parser.add_argument("--dense", help="folder of the dense model to compare with: also prints the relative accuracy")
    parser.add_argument(
        "--benchmarks",
        default="shapes",
        help="comma-separated: shapes (all families), or shapes/FAMILY with FAMILY one of "
        + ", ".join(QUESTION_FAMILIES),
    )
    parser.add_argument(
        "--data", type=Path, help="rows that carry a family (docs/data.md); default: the embedded world"
    )
    parser.add_argument("--images", type=Path, help="root of the images in --data; default: the folder of --data")
    parser.add_argument("--limit", type=int, help="ask the first N questions only")
    parser.add_argument("--batch-size", type=int, default=32, help="questions generated together (default 32)")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="default: as stored"
    )
    parser.add_argument("--grey", action="store_true", help="also show the model grey pictures: what it scores blind")
    parser.add_argument("--json", type=Path, help="write the result here, and a plot beside it")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the modelling code in the folders")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    for name, number in (("--limit", arguments.limit), ("--batch-size", arguments.batch_size)):
        if number is not None and number < 1:
            raise UserError(f"{name}: got {number}, allowed: 1 or more")
    if arguments.json is not None and arguments.json.suffix != ".json":
        raise UserError(f"--json: got {arguments.json}, allowed: a name that ends in .json (the plot ends in .png)")
    samples = read_samples(arguments.data, arguments.images, read_families(arguments.benchmarks), arguments.limit)
    start = time.perf_counter()
    evaluations = evaluate_models(arguments, samples)
    result = {
        "model": arguments.model,
        "dense": arguments.dense,
        "relative_accuracy": relative_accuracy(evaluations["model"], evaluations["dense"]) if arguments.dense else None,
        "seconds": time.perf_counter() - start,
        "evaluations": {name: evaluation.to_dict() for name, evaluation in evaluations.items()},
    }
    console = Console()
    console.print(families_table(evaluations))
    if arguments.dense:
        console.print(f"relative accuracy: {percent(result['relative_accuracy'])}")
    if arguments.json:
        write_json(arguments.json, result)
        plot_path = arguments.json.with_suffix(".png")
        save(families_plot({name: evaluation.families for name, evaluation in evaluations.items()}), plot_path)
        console.print(f"written: {arguments.json}, {plot_path}")


def evaluate_models(arguments: argparse.Namespace, samples: list[Sample]) -> dict[str, Evaluation]:
    """Returns name: evaluation of every model that the command line names."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    evaluations: dict[str, Evaluation] = {}
    for name, path in (("dense", arguments.dense), ("model", arguments.model)):
        if path is not None:
            model, processor = load_checkpoint(path, arguments.dtype, arguments.trust_remote_code)
            model = model.to(device)
            evaluations[name] = evaluate(model, processor, samples, batch_size=arguments.batch_size, title=name)
    if arguments.grey:
        evaluations["grey pictures"] = evaluate(
            model, processor, samples, batch_size=arguments.batch_size, pixel_transform="grey", title="grey pictures"
        )
    return evaluations


def read_families(benchmarks: str) -> set[str]:
    """Returns the families of questions that a comma-separated list of benchmark names stands for."""
    known = {"shapes": set(QUESTION_FAMILIES)} | {f"shapes/{family}": {family} for family in QUESTION_FAMILIES}
    chosen: set[str] = set()
    for name in benchmarks.split(","):
        if name not in known:
            raise UserError(f"--benchmarks: got {name!r}, allowed: {', '.join(known)}")
        chosen |= known[name]
    return chosen


def read_samples(data: Path | None, images: Path | None, families: set[str], limit: int | None) -> list[Sample]:
    """Returns the questions to ask, from `data` or from the embedded world's test part."""
    if data is None:
        if images is not None:
            raise UserError("--images: got a folder without --data, allowed: only together with --data")
        data = write_world(WORLDS, TEST_WORLD)["test"]
    samples, _ = load_samples(Source(path=data, images=images or data.parent))
    chosen = [sample for sample in samples if sample.family in families]
    if not chosen:
        raise UserError(f"{data}: no row of family {', '.join(sorted(families))} ('family' says how a row is scored)")
    return chosen[:limit]


if __name__ == "__main__":
    run(main)
