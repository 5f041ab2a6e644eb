"""The whole run of a recipe: deepspeed train.py --recipe NAME|PATH [key.sub=value ...]"""

import argparse
import warnings
from pathlib import Path

from training.cli import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", required=True, help="a YAML file, or the name of one in recipes/")
    parser.add_argument(
        "--dry-run", action="store_true", help="validate, build on meta, print the plan's cost, write nothing"
    )
    parser.add_argument(
        "--restart", action="store_true", help="delete what an earlier run of this name left, begin again"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher puts it first
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="overrides a field of the recipe")
    arguments = parser.parse_intermixed_args()

    # Libraries telling each other about their next major versions: nothing a user of this script could act on.
    warnings.simplefilter("ignore", FutureWarning)
    warnings.filterwarnings("ignore", "OMP_NUM_THREADS", UserWarning)  # each time a trainer is made

    from training.recipe import load_recipe  # after parsing: --help need not wait for it

    recipe = load_recipe(arguments.recipe, arguments.overrides)

    from transformers.utils.logging import (
        disable_progress_bar,  # after the recipe: its mistakes need not wait for torch
    )

    disable_progress_bar()  # a bar per loaded model drowns the stages'
    if arguments.dry_run:
        from training.tasks.dry_run import dry_run

        dry_run(recipe)
        return
    if recipe.task == "dense":
        from training.tasks.dense import stages
    elif recipe.task in ("frontier", "planners"):
        from training.tasks.frontier import stages
    else:
        from training.tasks.sparsify import stages
    from training.run import execute, start_single_process

    start_single_process()
    execute(recipe, stages(recipe), Path("runs") / recipe.name, restart=arguments.restart)


if __name__ == "__main__":
    run(main)
