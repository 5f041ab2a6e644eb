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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError
from rich.console import Console

from modeling.user_error import UserError
from training.compiled_ops import clear_killed_builds, on_several_machines
from training.files import read_json, write_json, write_text
from training.ranks import from_rank_0, of_all_ranks, open_patient_group, rank, wait_for_rank_0

RECORDED_PACKAGES = ("squint", "torch", "transformers", "peft", "deepspeed", "accelerate", "datasets", "safetensors")
WAIT_IN_TRAINING = timedelta(minutes=30)
"""How long a collective of the training may take. A rank that does not come for so long has died or hangs."""
WAIT_FOR_RANK_0 = timedelta(days=7)
"""How long the others wait where rank 0 works alone for hours, as in an export."""

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
    return rank() == 0


def start_single_process() -> None:
    """Sets the environment variables of a single process, unless a launcher has set them. DeepSpeed needs them.

    Raises:
        UserError: `srun` started several tasks without a launcher. Each would take itself for the whole run.
    """
    if "RANK" not in os.environ:
        if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ:
            raise UserError(
                f"srun started {os.environ['SLURM_NTASKS']} tasks, and none of them knows of the others; "
                "start one task per machine with `torchrun train.py ...` or `deepspeed train.py ...` in it"
            )
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
    _clear_killed_builds()
    _join_processes()
    try:
        with _only_run_in(directory):
            if is_main_process():
                _open_directory(recipe, directory, restart)
            wait_for_rank_0()
            _refuse_unshared(directory)
            run = Run(recipe, directory)
            for number, stage in enumerate(stages, start=1):
                _execute_stage(run, stage, f"stage {number} of {len(stages)}: {stage.title}")
                wait_for_rank_0()
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
    if from_rank_0(path.exists()):
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


@contextmanager
def _only_run_in(directory: Path) -> Iterator[None]:
    """Holds the run's folder for this run. Raises UserError on rank 0 if another run holds it.

    The lock is released when its process ends, however it ends.
    """
    if not is_main_process():
        yield
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory.with_name(f".{directory.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{directory}: another process runs in it; wait for it, or choose another name") from None
    with lock:
        yield


def _refuse_unshared(directory: Path) -> None:
    """Raises UserError if a machine does not see rank 0's folder: stages read what others wrote.

    It is raised on every rank. Otherwise the others would begin to work, and wait for one that has ended.
    """
    env = directory / "env.json"
    written = from_rank_0(env.read_text(encoding="utf-8") if is_main_process() else None)
    sees = env.exists() and env.read_text(encoding="utf-8") == written
    blind = sorted({machine for machine in of_all_ranks(None if sees else platform.node()) if machine is not None})
    if blind:
        raise UserError(
            f"{directory}: what rank 0 wrote there is not seen on {', '.join(blind)}; use a shared file system"
        )


def _clear_killed_builds() -> None:
    """Clears what killed compilations of DeepSpeed's op left behind, on each machine once."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        for folder in clear_killed_builds(on_several_machines()):
            console.print(f"cleared a compilation that was killed: {folder}", soft_wrap=True)


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
    """Returns whether a run folder's recipe.yaml is this recipe.

    A recipe.yaml of an earlier version may lack fields. They then have their defaults.
    """
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
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=WAIT_IN_TRAINING)
    open_patient_group(WAIT_FOR_RANK_0)
