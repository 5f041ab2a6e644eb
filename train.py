"""Executes a recipe from start to end: deepspeed train.py --recipe NAME|PATH [key.sub=value ...]"""

import argparse
import warnings

from training import stops
from training.cli import run
from training.launchers import Launchers
from training.tasks.forecast.assumptions import add_options, assumptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", required=True, help="a YAML file, or the name of one in recipes/")
    parser.add_argument(
        "--dry-run", action="store_true", help="validate, build on meta, print the plan's cost, write nothing"
    )
    parser.add_argument(
        "--restart", action="store_true", help="delete what an earlier run of this name left, begin again"
    )
    parser.add_argument("--yes", action="store_true", help="with --restart: do not ask before deleting")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    add_options(parser)
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="overrides a field of the recipe")
    arguments = parser.parse_intermixed_args()
    assumed = assumptions(arguments)

    stops.listen(Launchers().have_died)
    # Libraries warn each other about their next major versions. A user of this script can do nothing about it.
    warnings.simplefilter("ignore", FutureWarning)
    warnings.filterwarnings("ignore", "OMP_NUM_THREADS", UserWarning)  # comes with every trainer

    from training.recipe import load_recipe  # imported after parsing, so that --help is fast

    recipe = load_recipe(arguments.recipe, arguments.overrides)

    # Imported after the recipe is read, so that a mistake in the recipe is found without waiting for torch.
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # one bar for each loaded model would hide those of the stages
    if arguments.dry_run:
        from training.tasks.dry_run import dry_run

        dry_run(recipe, assumed)
        return
    if recipe.task == "dense":
        from training.tasks.dense import stages
    elif recipe.task == "instruct":
        from training.tasks.instruct import stages
    elif recipe.task in ("frontier", "planners"):
        from training.tasks.frontier import stages
    else:
        from training.tasks.sparsify import stages
    from training.run import execute, start_single_process

    start_single_process()
    execute(recipe, stages(recipe), recipe.folder, restart=arguments.restart, confirmed=arguments.yes)


if __name__ == "__main__":
    run(main)
