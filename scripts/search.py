"""Finds a plan for a dense model, without training, and writes it as a plan file with a plot of the search.

    python scripts/search.py --planner g_search --model checkpoints/tiny-llava --data shapes full_layers=1
    python scripts/search.py --planner p_sigmoid --model DENSE --budget 0.25 --data mix665k.json --images images/
    python scripts/search.py --planner fastv --model recipes/shapes/llava-1.5-7b.json --budget 0.25

key=value sets what a recipe's `plan` section would. A search that was stopped goes on when the same command is given
again. The same command in several processes at once shares the trials of Bayesian optimisation. `scripts/sparsify.py
--plan` applies the plan. A recipe with plan='{planner: file, path: plan.json}' distils it.
"""

import argparse
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedModel

from checkpoints.build import dense_config
from checkpoints.card import cost_table
from checkpoints.load import expect_new_shapes
from data.index.build import build_indexes
from data.index.index import open_indexes
from data.mixture import build_mixture
from data.shapes.questions import QUESTION_FAMILIES
from data.shapes.world import WORLDS, SplitSettings, WorldSettings, write_world
from data.sources.source import Source
from modeling.json_file import read_json
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training import cli
from training.distillation.datasets import in_batches
from training.distillation.students import dense_processor, dense_student
from training.files import write_json
from training.measure.calibration import calibrate
from training.measure.costs import fractions
from training.measure.latency import LatencyTable, measure_latency
from training.planners import AnyPlanner
from training.planners.planner import Planner
from training.planners.tools.search import Search
from training.recipe.errors import describe
from training.recipe.file import apply_override
from training.recipe.model import ModelSettings
from training.report.search_plots import search_plot
from training.report.style import save

SHAPES = "shapes"


def main() -> None:
    args = parse_args()
    settings = read_settings(args)
    config = dense_config(args.model)
    plan = settings.plan_of_config(config)
    folder = args.output.with_suffix(".search")
    if plan is None and args.data is None:
        raise UserError(f"--planner {args.planner}: measures the model, give --data (a file of rows, or {SHAPES!r})")
    open_folder(folder, args, settings)
    if plan is None:
        expect_new_shapes()
        plan = search(args, settings, folder)
    plan.save(args.output)
    plot_path = args.output.with_suffix(".png")
    save(search_plot(plan, fractions(plan, config)["visual_flops"], settings, folder), plot_path)
    print(cost_table(plan, config))
    print(f"\nwritten: {args.output}, {plot_path}")


def read_settings(args: argparse.Namespace) -> Planner:
    """Returns the planner's settings. Raises UserError where the command line does not describe any."""
    fields: dict = {"planner": args.planner}
    if args.budget is not None:
        fields["budget"] = {"visual_flops": args.budget}
    for override in args.overrides:
        apply_override(fields, override)
    try:
        return TypeAdapter(AnyPlanner).validate_python(fields)
    except ValidationError as error:
        raise UserError(f"--planner {args.planner}: {describe(error, AnyPlanner)}") from error


def open_folder(folder: Path, args: argparse.Namespace, settings: Planner) -> None:
    """Makes the folder of this search, or checks that the folder that is there belongs to it.

    Raises:
        UserError: something else is in the way.
    """
    request = {
        "settings": settings.model_dump(mode="json"),
        **{
            name: getattr(args, name)
            for name in ("model", "data", "images", "family", "num_samples", "batch_size", "max_length", "dtype")
        },
    }
    path = folder / "search.json"
    if path.exists():
        if read_json(path) != request:
            raise UserError(f"--output: {path} is of another search, choose another name or remove {folder}")
    elif args.output.exists():
        raise UserError(f"--output: {args.output} exists and is not of such a search, choose another name")
    write_json(path, request)


def search(args: argparse.Namespace, settings: Planner, folder: Path) -> VisualPlan:
    """Returns the plan that the planner finds by measuring the model on `--data`."""
    model_settings = ModelSettings(path=args.model, dtype=args.dtype, trust_remote_code=args.trust_remote_code)
    processor = dense_processor(model_settings)
    if args.data == SHAPES:
        rows = args.num_samples * (len(QUESTION_FAMILIES) if args.family else 1)  # the families take turns
        split = SplitSettings(part="calibration", rows=rows)
        path = write_world(WORLDS, WorldSettings(seed=0, splits={"calibration": split}))["calibration"]
        source = Source(path=path, images=path.parent)
    else:
        source = Source(path=args.data, images=args.images, num_samples=None if args.family else args.num_samples)
    indexes = open_indexes([source], build_indexes([source], processor, folder / "data", decode=False))
    dataset, _ = build_mixture(indexes, processor, max_length=args.max_length, seed=0, max_too_long_share=1.0)
    if args.family is not None:
        dataset = dataset.subset(
            [index for index, sample in enumerate(dataset.samples) if sample.family == args.family]
        )
    batches = in_batches(dataset, args.num_samples, args.batch_size, processor, "--num-samples")
    model = dense_student(model_settings)
    statistics = None
    if settings.needs_statistics:
        statistics = calibrate(model, batches, folder / "calibration", with_unit_kl=settings.needs_unit_kl)
    bounds_latency = any(bound.measure == "latency" for bound in settings.bounds)
    latency = measured_latency(model, folder / "latency.json") if bounds_latency else None
    return settings.find(Search(model, batches, statistics, latency, folder))


def measured_latency(model: PreTrainedModel, path: Path) -> LatencyTable:
    """Returns the timings of this machine, those of an earlier start of this search where there are any."""
    if not path.exists():
        measure_latency(model).save(path)
    return LatencyTable.load(path)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--planner", required=True, help="vtw, g_search, p_sigmoid, fastv, ...: those of training/planners but gates"
    )
    parser.add_argument(
        "--model",
        required=True,
        help="dense model: a folder, a model id on the Hub, or a config's JSON where it suffices",
    )
    parser.add_argument("--budget", type=float, help="share of the dense model's visual FLOPs")
    parser.add_argument("--data", help=f"rows to measure on (docs/data.md), or {SHAPES!r}, the embedded world's")
    parser.add_argument("--images", help="folder that the paths of pictures in --data start from")
    parser.add_argument("--family", help="samples of this family alone, for a plan of one task (default: all)")
    parser.add_argument("--num-samples", type=int, default=48, help="of the data (default 48)")
    parser.add_argument("--batch-size", type=int, default=8, help="samples measured together (default 8)")
    parser.add_argument(
        "--max-length", type=int, default=4096, help="tokens; longer samples are left out (default 4096)"
    )
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="of the weights (default float32)"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="lets the processor run code that comes with it"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("plan.json"),
        help="plan file (default plan.json); .png and .search stand beside it",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the planner")
    args = parser.parse_intermixed_args()
    for name in ("num_samples", "batch_size", "max_length"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: got {getattr(args, name)}, allowed: 1 or more")
    if args.output.suffix != ".json":
        raise UserError(f"--output: got {args.output}, allowed: a name that ends in .json")
    return args


if __name__ == "__main__":
    cli.run(main)
