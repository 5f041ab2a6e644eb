"""A run: its folder, its stages one after the other, and what survives a stop.

A run folder (`runs/<name>/`) holds the resolved recipe and the environment, written before anything is loaded, and one
result per finished stage under `stages/`. A stage whose result exists is skipped when the run is started again with the
same recipe; artefacts that a stage writes beside its result are its own affair, to be whole before it returns.

With several processes (one per accelerator, started by `deepspeed` or `torchrun`) every stage runs on rank 0 while the
others wait, except stages marked `distributed`, which all ranks enter together.
"""

import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from pydantic import BaseModel, ValidationError
from rich.console import Console

from modeling.user_error import UserError
from training.files import read_json, write_json, write_text

RECORDED_PACKAGES = ("squint", "torch", "transformers", "peft", "deepspeed", "accelerate", "datasets", "safetensors")
# One rank may work for hours (a search, an evaluation) while the others stand at the barrier.
WAIT_BETWEEN_STAGES = timedelta(days=7)

console = Console()


@dataclass(frozen=True)
class Run:
    """What a stage is given: the recipe, the run's folder and the results of the stages before it."""

    recipe: Any
    directory: Path

    def result(self, stage: str) -> dict:
        """The result of a finished stage (same dict on every rank)."""
        return read_json(self.result_path(stage))

    def result_path(self, stage: str) -> Path:
        return self.directory / "stages" / f"{stage}.json"


@dataclass(frozen=True)
class Stage:
    """One step of a run. `run` returns a JSON-able dict; `seconds` is added to it when it is written."""

    name: str
    title: str
    run: Callable[[Run], dict]
    distributed: bool = False
    """All ranks enter `run` (training). Otherwise rank 0 alone does."""


def is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def start_single_process() -> None:
    """Where no launcher started this process, tell torch and DeepSpeed what a launcher would: it is alone."""
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def execute(recipe: Any, stages: Sequence[Stage], directory: Path, *, restart: bool = False) -> Run:
    """Run the stages in order inside `directory`, skipping those already finished under the same recipe.

    Args:
        recipe: a frozen pydantic model; its `model_dump(mode="json")` is what "the same recipe" means.
        stages: in order; names are unique, as they name the result files.
        directory: the run's folder, made if absent.
        restart: delete what an earlier run left in `directory` and begin again.

    Returns: the run, with a result for every stage.
    Raises: UserError if `directory` belongs to a run with another recipe, or is no run's folder.
    """
    assert len({stage.name for stage in stages}) == len(stages), [stage.name for stage in stages]
    _join_processes()
    try:
        if is_main_process():
            _open_directory(recipe, directory, restart)
        _wait_for_all()
        run = Run(recipe, directory)
        for number, stage in enumerate(stages, start=1):
            _execute_stage(run, stage, f"stage {number} of {len(stages)}: {stage.title}")
            _wait_for_all()
        if is_main_process():
            console.print(f"finished: {directory}", soft_wrap=True)
        return run
    finally:
        # Left to interpreter shutdown, a rank can die in a destructor after all work is done.
        if dist.is_initialized():
            dist.destroy_process_group()


def _execute_stage(run: Run, stage: Stage, banner: str) -> None:
    path = run.result_path(stage.name)
    if path.exists():
        if is_main_process():
            console.print(
                f"{banner} (done before, {run.result(stage.name)['seconds']:.0f} s)", style="dim", soft_wrap=True
            )
        return
    if is_main_process():
        console.rule(f"[bold]{banner}", align="left")
    if not (stage.distributed or is_main_process()):
        return
    start = time.perf_counter()
    result = stage.run(run)
    if is_main_process():
        write_json(path, {**result, "seconds": round(time.perf_counter() - start, 3)})


def _open_directory(recipe: Any, directory: Path, restart: bool) -> None:
    recipe_path = directory / "recipe.yaml"
    resolved = recipe.model_dump(mode="json")
    if restart and recipe_path.exists():
        shutil.rmtree(directory)
    if recipe_path.exists():
        if not _is_recipe(yaml.safe_load(recipe_path.read_text(encoding="utf-8")), recipe):
            raise UserError(
                f"{directory} holds a run with another recipe (compare {recipe_path}): "
                "choose another name (name=...) or begin again with --restart"
            )
    elif directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} exists and is not a run's folder (no recipe.yaml in it): choose another name")
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "env.json", environment())
    write_text(recipe_path, yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))


def _is_recipe(written: Any, recipe: BaseModel) -> bool:
    """Whether a run folder's recipe.yaml is this recipe. Fields that it lacks, as it was written before there were any, are
    at their defaults."""
    try:
        return type(recipe).model_validate(written) == recipe
    except ValidationError:
        return False


def device() -> torch.device:
    """Where a stage's models run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def environment() -> dict:
    """What a result depends on besides its recipe: commit, package versions, machine."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "packages": {name: _installed(name) for name in RECORDED_PACKAGES},
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
    }


def _installed(package: str) -> str | None:
    """Version as installed; None where a checkout is run that was never installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Output of a git command in this checkout; None outside a checkout or without git."""
    root = Path(__file__).resolve().parent.parent
    if shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _join_processes() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=WAIT_BETWEEN_STAGES)


def _wait_for_all() -> None:
    if dist.is_initialized():
        # On a CPU tensor the wait goes through gloo: an NCCL barrier would spin on the accelerators.
        dist.all_reduce(torch.zeros(1))
