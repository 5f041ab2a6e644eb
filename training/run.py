"""Executes the stages of a run one after the other, in the run's folder.

The folder (`runs/<name>/`) holds the resolved recipe and the environment. Both are written before anything is loaded.
Every finished stage has a result file under `stages/`. If a run is started again with the same recipe, stages that have
a result are skipped. A stage may write other files. They must be complete before it returns.

There may be several processes, one per accelerator, started by `deepspeed` or `torchrun`. Then rank 0 executes the
stages while the other ranks wait. Only stages marked `distributed` are executed by all ranks together.
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
# One rank may work for hours (a search, an evaluation) while the others wait.
WAIT_BETWEEN_STAGES = timedelta(days=7)

console = Console()


@dataclass(frozen=True)
class Run:
    """What a stage gets: the recipe, the run's folder and the results of the stages before it."""

    recipe: Any
    """The recipe, a frozen pydantic model."""
    directory: Path
    """The run's folder."""

    def result(self, stage: str) -> dict:
        """Returns the result of a finished stage, on every rank."""
        return read_json(self.result_path(stage))

    def result_path(self, stage: str) -> Path:
        """Returns the path of a stage's result file."""
        return self.directory / "stages" / f"{stage}.json"


@dataclass(frozen=True)
class Stage:
    """One step of a run."""

    name: str
    """Name of its result file."""
    title: str
    """What it does, in words for the terminal."""
    run: Callable[[Run], dict]
    """Executes the stage. It returns values that JSON can hold; `seconds` is added to them in the result file."""
    distributed: bool = False
    """Whether all ranks execute it together, as in training. If not, only rank 0 does."""


def is_main_process() -> bool:
    """Returns whether this process is rank 0."""
    return int(os.environ.get("RANK", "0")) == 0


def start_single_process() -> None:
    """Sets the environment variables of a single process, unless a launcher has set them. DeepSpeed needs them."""
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def execute(recipe: Any, stages: Sequence[Stage], directory: Path, *, restart: bool = False) -> Run:
    """Executes the stages in order. Those that an earlier start has finished are skipped.

    Args:
        recipe: a frozen pydantic model. Two recipes are the same if their `model_dump(mode="json")` is the same.
        stages: the stages in order. Their names differ.
        directory: the run's folder. It is made if it is missing.
        restart: whether to delete what an earlier run left in `directory`, and begin again.

    Returns:
        The run, with a result for every stage.

    Raises:
        UserError: `directory` belongs to a run with another recipe, or is no run's folder.
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
        # If this is left to the end of the interpreter, a rank can crash in a destructor after all work is done.
        if dist.is_initialized():
            dist.destroy_process_group()


def _execute_stage(run: Run, stage: Stage, banner: str) -> None:
    """Executes a stage and writes its result, unless it is there. `banner` is printed first."""
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
    """Makes the run's folder with recipe and environment. Raises UserError if something else is there."""
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
    """Returns the device that a stage's models run on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def environment() -> dict:
    """Returns what a result depends on besides its recipe: the commit, the versions of packages and the machine."""
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
    """Returns the installed version of a package; None if it is not installed, as this project in a mere checkout."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Returns the output of a git command in this checkout; None without a checkout or git."""
    root = Path(__file__).resolve().parent.parent
    if shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _join_processes() -> None:
    """Joins the process group, if there are several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=WAIT_BETWEEN_STAGES)


def _wait_for_all() -> None:
    """Waits until all ranks have come here."""
    if dist.is_initialized():
        # A CPU tensor is reduced by gloo. An NCCL barrier would keep the accelerators busy while it waits.
        dist.all_reduce(torch.zeros(1))
