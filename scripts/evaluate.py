"""Asks a model, dense or sparse, the questions of benchmarks and scores the answers it generates.

    python scripts/evaluate.py --model checkpoints/tiny-llava
    python scripts/evaluate.py --model DIR --dense DIR --benchmarks pope,gqa --data playground/data/eval --json out.json
    torchrun --nproc-per-node 8 scripts/evaluate.py ...

It prints the metrics with their 95 % intervals. --json writes figures and every answer, a plot (.png) and a folder of
answer files beside it, and makes an evaluation that is killed go on where it was. docs/benchmarks.md says more.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from filelock import FileLock, Timeout
from rich.console import Console

from checkpoints.build import dense_config
from checkpoints.config import read_config
from checkpoints.families import is_sparse
from checkpoints.load import expect_new_shapes, load_checkpoint
from checkpoints.processor import load_processor
from data.benchmarks.benchmark import Style
from data.benchmarks.names import BenchmarkName
from data.shapes.questions import QUESTION_FAMILIES
from data.shapes.world import WORLDS, SplitSettings, WorldSettings, write_world
from data.sources.reading import load_samples
from data.sources.source import Source
from modeling.user_error import UserError
from training.cli import run
from training.evaluation.answer_files import write_answer_files, write_submissions
from training.evaluation.asking import check_prompts, evaluate
from training.evaluation.comparison import as_dict, compare, mean_kept
from training.evaluation.kept_answers import KeptAnswers
from training.evaluation.questions import Asked, asked_of, digest, limited, read_benchmarks
from training.evaluation.results import Evaluation
from training.files import write_json
from training.inputs.fingerprints import fingerprints
from training.ranks import led_by_rank_0
from training.recipe.data import BenchmarkSettings
from training.report.numbers import percent
from training.report.result_plots import families_plot
from training.report.style import save
from training.report.tables import comparison_table, metrics_table
from training.run import device, is_main_process, join_processes

# The questions of recipes/tiny_teacher.yaml. There are 200 of each family, which gives the accuracy in one family a
# standard error of at most 3.5 points.
TEST_WORLD = WorldSettings(seed=0, splits={"test": SplitSettings(part="test", rows=200 * len(QUESTION_FAMILIES))})
FILE_WIDTH = 140
"""Characters in a line where the output is a file or a pipe, so that tables are not broken."""
GREY = "grey"
PUBLIC = tuple(name for name in get_args(BenchmarkName) if name != "shapes")
SHAPES = {"shapes": set(QUESTION_FAMILIES)} | {f"shapes/{family}": {family} for family in QUESTION_FAMILIES}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a dense or a sparse checkpoint")
    parser.add_argument("--dense", help="folder of the dense model to compare with, question by question")
    parser.add_argument(
        "--benchmarks",
        default="shapes",
        help=f"comma-separated: {', '.join(PUBLIC)}; shapes (the embedded world), or shapes/FAMILY with FAMILY one of "
        + ", ".join(QUESTION_FAMILIES),
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="folder with a folder for each benchmark; for shapes, a file of rows that carry a family (docs/data.md)",
    )
    parser.add_argument("--hub", help="owner of the benchmarks on the Hub instead, such as lmms-lab")
    parser.add_argument("--images", type=Path, help="root of the images in a file of rows; default: its folder")
    parser.add_argument("--prompts", default="llava", choices=get_args(Style), help="whose prompts (default llava)")
    parser.add_argument("--limit", type=int, help="ask the first N questions of each benchmark only")
    parser.add_argument("--batch-size", type=int, default=32, help="questions generated together (default 32)")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="default: as stored"
    )
    parser.add_argument("--grey", action="store_true", help="also show the model grey pictures: what it scores blind")
    parser.add_argument("--json", type=Path, help="write the result here, and a plot and answer files beside it")
    parser.add_argument(
        "--submission", action="store_true", help="also write what official scorers and servers take (with --json)"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run the modelling code in the folders")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    expect_new_shapes()
    join_processes()
    led_by_rank_0({}, lambda _: check(arguments))  # a mistake is told once
    asked = led_by_rank_0({}, lambda _: read_questions(arguments)) or read_questions(arguments)
    led_by_rank_0({}, lambda _: check_models(arguments, asked))
    lock = led_by_rank_0({}, lambda _: open_output(arguments))
    start = time.perf_counter()
    kept = kept_answers(arguments, asked)
    evaluations = evaluate_models(arguments, asked, kept)
    if is_main_process():
        write_result(arguments, asked, evaluations, time.perf_counter() - start)
    for answers in kept.values():
        answers.remove()
    if lock is not None:
        lock.release()


def check(arguments: argparse.Namespace) -> None:
    """Raises UserError where arguments do not go together, before anything is loaded."""
    for name, number in (("--limit", arguments.limit), ("--batch-size", arguments.batch_size)):
        if number is not None and number < 1:
            raise UserError(f"{name}: got {number}, allowed: 1 or more")
    if arguments.json is not None and arguments.json.suffix != ".json":
        raise UserError(f"--json: got {arguments.json}, allowed: a name that ends in .json (the plot ends in .png)")
    if arguments.submission and arguments.json is None:
        raise UserError("--submission: needs --json, beside which the files are written")
    names = arguments.benchmarks.split(",")
    for name in names:
        if name not in PUBLIC and name not in SHAPES:
            raise UserError(f"--benchmarks: got {name!r}, allowed: {', '.join((*PUBLIC, *SHAPES))}")
        if names.count(name) > 1:
            raise UserError(f"--benchmarks: got {name} twice, allowed: each once")
    public = [name for name in names if name in PUBLIC]
    if public and arguments.images is not None:
        raise UserError(f"--images: is for a file of rows, and {public[0]} is none")
    if not public and arguments.hub is not None:
        raise UserError("--hub: shapes is not on the Hub; it is embedded, or a file of rows in --data")
    if arguments.submission and len(public) < len(names):
        raise UserError("--submission: shapes has none; its answer files stand beside --json")


def read_questions(arguments: argparse.Namespace) -> list[Asked]:
    """Returns the questions to ask. Raises UserError where they cannot be read."""
    names = arguments.benchmarks.split(",")
    public = [name for name in names if name in PUBLIC]
    asked: list[Asked] = []
    if public:
        if (arguments.data is None) == (arguments.hub is None):
            raise UserError(
                f"--benchmarks: {public[0]} is read from --data (a folder) or --hub (an owner), one of the two"
            )
        settings = BenchmarkSettings(
            benchmarks=tuple(public),
            path=arguments.data,
            hub=arguments.hub,
            prompts=arguments.prompts,
            num_questions=arguments.limit,
        )
        asked += read_benchmarks(settings)
    if arguments.submission:
        for part in with_submission(asked):
            assert part.place is not None
            part.benchmark.submission((), part.place)  # what it needs is missed now, not after hours
    families = set().union(*(SHAPES[name] for name in names if name in SHAPES))
    if families:
        asked.append(read_rows(None if public else arguments.data, arguments.images, families, arguments.limit))
    return asked


def with_submission(asked: Sequence[Asked]) -> list[Asked]:
    """Returns the benchmarks that have files of their own for a scorer or a server."""
    return [part for part in asked if part.benchmark.has_submission]


def read_rows(data: Path | None, images: Path | None, families: set[str], limit: int | None) -> Asked:
    """Returns the questions of these families, from `data` or from the embedded world's test part."""
    if data is None:
        if images is not None:
            raise UserError("--images: got a folder without a file of rows in --data, allowed: only together with one")
        data = write_world(WORLDS, TEST_WORLD)["test"]
    samples, _ = load_samples(Source(path=data, images=images or data.parent))
    chosen = [sample for sample in samples if sample.family in families]
    if not chosen:
        raise UserError(f"{data}: no row of family {', '.join(sorted(families))} ('family' says how a row is scored)")
    asked = asked_of(chosen)
    return asked._replace(questions=limited(asked.questions, limit))


def check_models(arguments: argparse.Namespace, asked: list[Asked]) -> None:
    """Raises UserError where a model is none, or cannot be shown the questions. No weights are read."""
    for path in dict.fromkeys(models_of(arguments).values()):
        if not is_sparse(read_config(path)):
            dense_config(path)
        check_prompts(asked, load_processor(path, arguments.trust_remote_code))


def open_output(arguments: argparse.Namespace) -> FileLock | None:
    """Makes the folder of answer files, and holds it for this evaluation until its process ends.

    Raises:
        UserError: nothing can be written there, a model is there, or another evaluation is, such as what a launcher
            that was killed has left behind.
    """
    if arguments.json is None:
        return None
    folder = answers_folder(arguments)
    if (folder / "config.json").exists():
        raise UserError(f"--json: {folder} is a model, and the answer files would lie in it; choose another name")
    if arguments.json.is_dir():
        raise UserError(f"--json: {arguments.json} is a folder, a file is expected")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"--json: another process writes {folder}; wait for it, or choose another name") from None
    except OSError as error:
        raise UserError(f"--json: {arguments.json} cannot be written ({error})") from error
    return lock


def models_of(arguments: argparse.Namespace) -> dict[str, str]:
    """Returns the models that the command line names: what each is called here, and its folder."""
    paths = {"dense": arguments.dense, GREY: arguments.dense or arguments.model, "model": arguments.model}
    return {name: path for name, path in paths.items() if path is not None and (name != GREY or arguments.grey)}


def kept_answers(arguments: argparse.Namespace, asked: list[Asked]) -> dict[str, KeptAnswers]:
    """Returns where the answers of each model are kept meanwhile. There is no such place without --json."""
    if arguments.json is None:
        return {}
    said = [digest(asked), arguments.batch_size, arguments.dtype]
    return {
        name: KeptAnswers(answers_folder(arguments) / "kept" / name, json.dumps([*said, fingerprints(Path(path))]))
        for name, path in models_of(arguments).items()
    }


def evaluate_models(
    arguments: argparse.Namespace, asked: list[Asked], kept: dict[str, KeptAnswers]
) -> dict[str, Evaluation]:
    """Returns name: evaluation of every model that the command line names. One model at a time is in memory."""
    evaluations: dict[str, Evaluation] = {}
    loaded = None
    for name, path in models_of(arguments).items():
        if path != loaded:
            model, processor = load_checkpoint(path, arguments.dtype, arguments.trust_remote_code)
            model, loaded = model.to(device()), path
        evaluations[name] = evaluate(
            model,
            processor,
            asked,
            batch_size=arguments.batch_size,
            pixel_transform="grey" if name == GREY else None,
            kept=kept.get(name),
            title=name,
        )
    return evaluations


def write_result(
    arguments: argparse.Namespace, asked: list[Asked], evaluations: dict[str, Evaluation], seconds: float
) -> None:
    """Prints the figures, and writes the files that the command line names."""
    console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH, markup=False, emoji=False)
    scored = bool(evaluations["model"].resampled)
    compared, kept = {}, None
    if scored:
        if any(part.place for part in asked):
            console.print(f"prompts: {arguments.prompts}")
        console.print(metrics_table(evaluations))
    if scored and arguments.dense:
        found = compare(evaluations["dense"], evaluations["model"], evaluations.get(GREY))
        compared, kept = as_dict(found), mean_kept(found)
        console.print(comparison_table(compared))
        console.print(f"relative accuracy: {percent(kept)}")
    if arguments.json is None:
        return
    folder = answers_folder(arguments)
    for name, evaluation in evaluations.items():
        write_answer_files(evaluation, folder / name, name)
        if arguments.submission:
            written = write_submissions(evaluation, with_submission(asked), folder / name)
            rest = [part for part in asked if not part.benchmark.has_submission]  # their scorers take answer files
            written += [folder / name / f"{part.benchmark.name}.jsonl" for part in rest]
            for path in written:
                console.print(f"submission: {path}", soft_wrap=True)
    result = {
        "model": arguments.model,
        "dense": arguments.dense,
        "prompts": arguments.prompts,
        "relative_accuracy": kept,
        "benchmarks": compared,
        "seconds": seconds,
        "evaluations": {name: evaluation.to_dict() for name, evaluation in evaluations.items()},
    }
    write_json(arguments.json, result)
    console.print(f"written: {arguments.json}, {folder}", soft_wrap=True)
    if scored:
        save(
            families_plot({name: evaluation.families for name, evaluation in evaluations.items()}),
            arguments.json.with_suffix(".png"),
        )


def answers_folder(arguments: argparse.Namespace) -> Path:
    """Returns the folder of answer files beside the result."""
    return arguments.json.with_suffix("")


if __name__ == "__main__":
    run(main)
