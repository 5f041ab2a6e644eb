"""Executes the stages of a run one after the other, in the run's folder.

The folder (`runs/<name>/`) holds the resolved recipe and the environment. Both are written before anything is loaded
(training/starts.py). Every finished stage has a result file under `stages/`. If a run is started again, stages that
have a result are skipped. A stage may write other files. They must be complete before it returns.

There may be several processes, one per accelerator, started by `deepspeed` or `torchrun`. Then rank 0 executes the
stages while the other ranks wait. Only stages marked `distributed` are executed by all ranks together.
"""

import os
import platform
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from rich.console import Console

from checkpoints.load import expect_new_shapes
from modeling.user_error import UserError
from training import stops
from training.changes import settings, undecided
from training.compiled_ops import clear_killed_builds, on_several_machines
from training.files import read_json, write_json
from training.ranks import from_rank_0, led_by_rank_0, of_all_ranks, open_patient_group, rank, wait_for_rank_0
from training.starts import STARTS, checkpoints_in_progress, open_folder, step_of

RECORDED_PACKAGES = ("squint", "torch", "transformers", "peft", "deepspeed", "accelerate", "datasets", "safetensors")
BFLOAT16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
"""What CPUs that compute in bfloat16 have, of x86 and of Arm. Others take several times as long as in float32."""
WAIT_IN_TRAINING = timedelta(minutes=30)
"""How long a collective of the training may take. A rank that does not come for so long has died or hangs."""
WAIT_FOR_RANK_0 = timedelta(days=7)
"""How long the others wait where rank 0 works alone for hours, as in an export."""
WAIT_FOR_FOLDER = timedelta(seconds=10)
"""How long a start waits for the run's folder. Workers that load data hold it until they see that their run was
killed."""

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
        path = self.result_path(stage)
        return read_json(path, "delete it, and the next start does this stage again")

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
    look_again: Callable[[Run], None] | None = None
    """Called by rank 0 at a later start, if this stage was done before and others are left. It raises UserError where
    what the stage saw has changed."""


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


def execute(
    recipe: Any, stages: Sequence[Stage], directory: Path, *, restart: bool = False, confirmed: bool = False
) -> Run:
    """Executes the stages in order. Those that an earlier start has finished are skipped.

    Args:
        recipe: a frozen pydantic model.
        stages: the stages in order. Their names differ.
        directory: the run's folder. It is made if it is missing.
        restart: whether to delete what an earlier run left in `directory`, and begin again.
        confirmed: whether the user has agreed to delete it. If not, he is asked.

    Returns:
        The run, with a result for every stage. In its recipe no precision is `auto`.

    Raises:
        UserError: as `training.starts.open_folder`, or a stage that was done before saw what has changed since.
        Stopped: a signal ended the run. On rank 0 the message says what is kept and how to go on.
        KeyboardInterrupt: likewise, for Ctrl-C.
        OtherFailed: another rank has raised what ended the run.
    """
    assert len({stage.name for stage in stages}) == len(stages), [stage.name for stage in stages]
    _clear_killed_builds()
    expect_new_shapes()
    join_processes()
    begun = 0  # number of the stage that was begun last
    try:
        with _only_run_in(directory):
            names = [stage.name for stage in stages]
            opened = partial(open_folder, recipe, directory, environment(), names, restart=restart, confirmed=confirmed)
            run = Run(from_rank_0(led_by_rank_0({}, lambda _: opened())), directory)
            _refuse_unshared(directory)
            if is_main_process():
                for field in undecided(recipe):
                    console.print(f"{field}: auto is {settings(run.recipe)[field].value} in this run", soft_wrap=True)
            if from_rank_0(not all(run.result_path(name).exists() for name in names)):
                for stage in stages:
                    _look_again(run, stage)
            for begun, stage in enumerate(stages, start=1):
                stops.raise_if_received()
                _execute_stage(run, stage, f"stage {begun} of {len(stages)}: {stage.title}")
                wait_for_rank_0()
            if is_main_process():
                console.print(f"finished: {directory}", soft_wrap=True)
            return run
    except BaseException as error:
        if stops.other_has_failed():
            raise stops.OtherFailed from None
        # An exception after a signal is most often a connection that another rank closed as it stopped.
        stop = None if isinstance(error, UserError) else stops.received_at_last()
        if stop is not None:
            kind = KeyboardInterrupt if stop == signal.SIGINT else stops.Stopped
            raise kind(*([_last_words(stop, begun, stages, directory)] if is_main_process() else [])) from None
        if not isinstance(error, stops.OtherFailed) and not stops.first_to_fail():
            raise stops.OtherFailed from None
        raise
    finally:
        stops.wait_until_all_know()
        stops.leave()
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
    start = time.perf_counter()
    result = stage.run(run) if stage.distributed else led_by_rank_0({}, lambda _: stage.run(run))
    if is_main_process():
        write_json(path, {**result, "seconds": round(time.perf_counter() - start, 3)})


def _look_again(run: Run, stage: Stage) -> None:
    """Lets a stage that was done before look whether what it saw has changed."""
    look_again = stage.look_again
    if look_again is not None and from_rank_0(run.result_path(stage.name).exists()):
        led_by_rank_0({}, lambda _: look_again(run))


def _last_words(stop: signal.Signals, begun: int, stages: Sequence[Stage], directory: Path) -> str:
    """Returns one line for a run that was stopped: where, what is kept and how to go on."""
    where = f"in stage {begun} of {len(stages)}, {stages[begun - 1].title}" if begun else "before its first stage"
    steps = {path.parent: step_of(path) for path in checkpoints_in_progress(directory)}
    kept = ", ".join(f"step {step} of {folder.relative_to(directory)}" for folder, step in sorted(steps.items()))
    return (
        f"{stop.name} {where}. {directory} keeps {max(begun - 1, 0)} finished stages{' and ' if kept else ''}{kept}; "
        "the same command goes on there"
    )


@contextmanager
def _only_run_in(directory: Path) -> Iterator[None]:
    """Holds the run's folder for this run. Every process calls this.

    The lock is released when its process ends, however it ends.

    Raises:
        UserError: another run holds it.
    """
    lock = led_by_rank_0({}, lambda _: _locked(directory))
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _locked(directory: Path) -> FileLock:
    """Returns the lock of a run's folder, which is held. Raises UserError if another run holds it."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory.with_name(f".{directory.name}.lock"))
    try:
        lock.acquire(timeout=WAIT_FOR_FOLDER.total_seconds())
    except Timeout:
        raise UserError(f"{directory}: another process runs in it; wait for it, or choose another name") from None
    return lock


def _refuse_unshared(directory: Path) -> None:
    """Raises UserError if a machine does not see rank 0's folder: stages read what others wrote.

    It is raised on every rank. Otherwise the others would begin to work, and wait for one that has ended.
    """
    starts = directory / STARTS
    written = from_rank_0(starts.read_text(encoding="utf-8") if is_main_process() else None)
    sees = starts.exists() and starts.read_text(encoding="utf-8") == written
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


def device() -> torch.device:
    """Returns the device that a stage's models run on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_precision() -> str:
    """Returns `bfloat16` where this machine's GPU, or without one its CPU, has instructions for it, else `float32`."""
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Not every torch that is supported tells. float32 is right everywhere.
        has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        fast = any(has.get(name) for name in BFLOAT16_INSTRUCTIONS)
    return "bfloat16" if fast else "float32"


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
        "precision": fast_precision(),
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


def join_processes() -> None:
    """Joins the process group, if a launcher has started several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, number, count = next(dist.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=WAIT_IN_TRAINING, store=store, rank=number, world_size=count)
    open_patient_group(WAIT_FOR_RANK_0)
    stops.join(store, count)
