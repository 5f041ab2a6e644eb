"""The run that a training has in trackers: one for each student and for each learning of gates.

transformers sends the logs. It names a run by `run_name`, which is RECIPE/STUDENT, and sends the whole recipe, which is
a field of the arguments. Some trackers have one run for each process, and transformers does not end it. All students
would share the first one's run.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from modeling.user_error import UserError

PROJECT = "squint"


@dataclass
class RecipeArguments(TrainingArguments):
    """`TrainingArguments` with the recipe, so that trackers show it among the arguments."""

    recipe: dict = field(default_factory=dict)


@contextmanager
def tracker_run(args: RecipeArguments) -> Iterator[None]:
    """Begins and ends the run of a training in the trackers that would not do it by themselves.

    If the training is stopped, the run is left to the tracker. It then knows that the process has died.
    """
    trackers = args.report_to if args.process_index == 0 else ()
    if "wandb" in trackers:
        import wandb

        wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=os.environ.get("WANDB_RUN_GROUP", args.recipe.get("name")),
            name=args.run_name,
        )
    yield
    if "wandb" in trackers:
        wandb.finish()
    if "swanlab" in trackers:
        import swanlab

        swanlab.finish()


def refuse_missing_trackers(names: tuple[str, ...]) -> None:
    """Raises UserError if a tracker that is asked for is not installed, or is not one that transformers knows."""
    available = get_available_reporting_integrations()
    for name in names:
        if name not in available:
            raise UserError(
                f"training.report_to: got {name!r}, which is not installed or not known; installed: "
                f"{', '.join(available) or 'none'}"
            )
