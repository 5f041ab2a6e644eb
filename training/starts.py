"""Opens a run's folder at each start: a new one, one to go on in, or one to begin again.

A run goes on with the recipe it was begun with. What decides no result may change, and each start is recorded:

    recipe.yaml     the recipe as it is now, with what `precision: auto` became when the run was begun
    inputs.json     records of what the recipe reads (training/inputs/recorded.py), but for the files in `images`
    env.json        the environment of the last start
    starts.jsonl    a line for each start: when, in which environment, and which fields had changed

As long as no stage has finished, nothing is kept of the recipe. So a mistake in it does not occupy the run's name.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from modeling.user_error import UserError
from training.changes import AnyRecipe, Change, changes, decided, leaves, undecided
from training.files import PUT_BACK, read_json, reading, write_json, write_text
from training.inputs.recorded import inputs_of, may_change
from training.schema import AUTO, MayChange

RECIPE, INPUTS, ENVIRONMENT, STARTS = "recipe.yaml", "inputs.json", "env.json", "starts.jsonl"
"""The files that this module writes."""
COMPLETE = "complete.json"
"""In a trainer's checkpoint: written when all its other files are there. It says which processes can load it."""
METRICS = "metrics.jsonl"
"""Every training writes this file when it begins."""
MOST_NAMED = 4
"""How many changed fields a message names."""


def open_folder(
    recipe: AnyRecipe, directory: Path, environment: dict, stages: Sequence[str], *, restart: bool, confirmed: bool
) -> AnyRecipe:
    """Opens a run's folder for this start. It is made if it is missing.

    Args:
        recipe: the recipe of this start.
        environment: what env.json records, with `world_size`, and `precision`: what `auto` becomes on this machine.
        stages: names of all stages of the run.
        restart: whether to delete what earlier starts left.
        confirmed: whether the user has agreed to that already. If not, he is asked.

    Returns:
        The recipe that the run goes on with, in which no precision is `auto`.

    Raises:
        UserError: the folder is not a run's, a file in it is damaged, or the run cannot go on with what has changed.
    """
    removed = directory.with_name(f".{directory.name}.removed")
    if removed.exists():  # an earlier start was killed while it deleted
        shutil.rmtree(removed)
    if restart and (directory / RECIPE).exists():
        if not confirmed:
            _ask_to_delete(directory)
        directory.rename(removed)
        shutil.rmtree(removed)
    elif not (directory / RECIPE).exists() and directory.exists():
        strange = [path.name for path in directory.iterdir() if not path.name.startswith(".")]
        if set(strange) - {ENVIRONMENT}:  # a kill between the first files may leave this one
            raise UserError(
                f"{directory} exists and is not a run's folder (no {RECIPE} in it): choose another name (name=...)"
            )
    done = [name for name in stages if (directory / "stages" / f"{name}.json").exists()]
    written = _written_recipe(directory / RECIPE) if done else {}
    recipe = _decided(recipe, written, environment["precision"])
    finished = len(done) == len(stages)
    changed = _accepted_changes(recipe, written, directory, environment, finished=finished) if done else []
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / RECIPE, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    if not (done and (directory / INPUTS).exists()):
        write_json(directory / INPUTS, {field: one.record() for field, one in inputs_of(recipe, {})})
    write_json(directory / ENVIRONMENT, environment)
    start = {
        "time": datetime.now(timezone.utc).isoformat(),
        "changed": {change.field: {"before": change.before, "now": change.now} for change in changed},
        "environment": environment,
    }
    path = directory / STARTS
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    write_text(path, before + json.dumps(start, ensure_ascii=False) + "\n")
    return recipe


def _written_recipe(path: Path) -> dict:
    """Returns the content of a recipe.yaml. Raises UserError if it is damaged."""
    with reading(path, PUT_BACK):
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(written, dict):
            raise ValueError("no mapping of keys to values")
        return written


def checkpoints_in_progress(directory: Path) -> list[Path]:
    """Returns the complete checkpoints of a run's trainings that have not ended, by step."""
    markers = directory.rglob(f"checkpoint-*/{COMPLETE}")
    found = [path.parent for path in markers if not (path.parent.parent.parent / "weights").exists()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Returns the step at which a checkpoint was saved, from its folder's name."""
    return int(checkpoint.name.rpartition("-")[2])


def _decided(recipe: AnyRecipe, written: Any, precision: str) -> AnyRecipe:
    """Returns a recipe in which each precision that is `auto` is as in the recipe.yaml, or as this machine has it."""
    before = {field: value for field, value in leaves(written) if value != AUTO}
    return decided(recipe, {field: before.get(field, precision) for field in undecided(recipe)})


def _accepted_changes(
    recipe: BaseModel, written: Any, directory: Path, environment: dict, *, finished: bool
) -> list[Change]:
    """Returns what has changed since the last start. Raises UserError if the run cannot go on with it."""
    changed = changes(written, recipe)
    known = read_json(directory / INPUTS) if (directory / INPUTS).exists() else {}
    refused = [change for change in changed if not may_change(change, known)]
    if refused:
        named = "; ".join(str(change) for change in refused[:MOST_NAMED])
        more = f"; and {len(refused) - MOST_NAMED} more" if len(refused) > MOST_NAMED else ""
        raise UserError(
            f"{directory} holds a run with another recipe: {named}{more}. "
            "Take back the change, choose another name (name=...), or begin again with --restart"
        )
    if finished:
        return changed
    _refuse_other_content(recipe, directory, known)
    if (directory / ENVIRONMENT).exists():
        processes = Change(
            "processes", read_json(directory / ENVIRONMENT)["world_size"], environment["world_size"], None
        )
        if processes.before != processes.now:
            changed = [*changed, processes]
            _refuse_shards(directory, processes.now)
        if any(directory.rglob(METRICS)):
            _refuse_other_batch(type(recipe).model_validate(written), recipe, directory, changed, processes)
    return changed


def _refuse_other_content(recipe: BaseModel, directory: Path, known: dict) -> None:
    """Raises UserError if something that the recipe reads has another content than when the run was begun."""
    for field, one in inputs_of(recipe, known):
        difference = one.difference(known.get(field, {}))
        if difference is not None:
            raise UserError(
                f"{field}: {difference}. Put back what {directory} was begun with, choose another name (name=...), or "
                "begin again with --restart"
            )


def _refuse_other_batch(
    before: BaseModel, now: BaseModel, directory: Path, changed: Sequence[Change], processes: Change
) -> None:
    """Raises UserError if a step has another number of samples than in the trainings that were begun."""
    batches, now_batches = before.global_batches(processes.before), now.global_batches(processes.now)
    for section, batch in batches.items():
        if batch != now_batches[section]:
            factors = [one for one in changed if one is processes or one.may_change is MayChange.AT_EQUAL_GLOBAL_BATCH]
            raise UserError(
                f"{directory}: {section} was begun with {batch} samples in a step, and would go on with "
                f"{now_batches[section]} ({'; '.join(map(str, factors))}). Keep the product, "
                "choose another name (name=...), or begin again with --restart"
            )


def _refuse_shards(directory: Path, processes: int) -> None:
    """Raises UserError if a training is to go on from a checkpoint that another number of processes shares."""
    for checkpoint in checkpoints_in_progress(directory):
        saved = read_json(checkpoint / COMPLETE)
        if saved["sharded"] and saved["processes"] != processes:
            raise UserError(
                f"{checkpoint}: DeepSpeed divided this checkpoint among {saved['processes']} processes and cannot "
                f"load it in {processes}. Go on with {saved['processes']}, at least until this training is done"
            )


def _ask_to_delete(directory: Path) -> None:
    """Asks the user whether a run may be deleted. Raises UserError if he says no or cannot be asked."""
    done = len(list((directory / "stages").glob("*.json")))
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / 2**20
    what = f"--restart deletes {directory} ({done} finished stages, {size:,.0f} MiB)"
    if not sys.stdin.isatty():
        raise UserError(f"{what}. There is no terminal to ask on: add --yes if that is meant")
    if input(f"{what}. Delete it? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError(f"--restart: {directory} is kept")
