"""The checkpoints from which a training goes on, its pause, and its end when the run is told to stop.

A checkpoint counts when `complete.json` lies in it. That file is written when all ranks have written theirs, and the
checkpoint before is deleted only then. transformers' own rotation deletes it when rank 0 has written, so `training`
sets no `save_total_limit`.

After the last step there is no checkpoint, as the weights themselves are written then. So no training goes on from a
checkpoint that has no steps left.
"""

import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from training import stops
from training.files import reading, write_json
from training.ranks import any_rank, from_rank_0, rank, wait_for_rank_0, world_size
from training.starts import COMPLETE, step_of


class TrainerCheckpoints(TrainerCallback):
    """Completes each checkpoint. If any rank was told to stop, all save at the end of the step, and Stopped is raised.

    Add it as the last callback, so that the others see the end of the training before Stopped is raised.

    Args:
        pause_at: the step after which the training ends with a look at the held-out samples and a checkpoint. None
            trains to the last step.
    """

    def __init__(self, pause_at: int | None = None):
        self._pause_at = pause_at

    def on_train_begin(self, args, state, control, **kwargs):
        # A checkpoint brings the intervals that it was saved under, but they may have changed since.
        state.compute_steps(args, state.max_steps)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            control.should_save = False
        elif state.global_step == self._pause_at:
            control.should_evaluate = control.should_save = control.should_training_stop = True
        elif any_rank(stops.received() is not None):
            control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        wait_for_rank_0()  # until all ranks have written
        if rank() == 0:
            folder = Path(args.output_dir)
            checkpoint = folder / f"checkpoint-{state.global_step}"
            _to_disk(checkpoint)
            write_json(checkpoint / COMPLETE, {"processes": world_size(), "sharded": bool(args.deepspeed)})
            delete_checkpoints(folder, but=checkpoint)
        wait_for_rank_0()

    def on_train_end(self, args, state, control, **kwargs):
        if state.global_step < state.max_steps and state.global_step != self._pause_at:
            raise stops.Stopped


def last_checkpoint(folder: Path) -> Path | None:
    """Returns the newest complete checkpoint in a trainer's folder, or None. Every process calls this.

    What a killed process left of others is deleted: parts of them must not get into a new checkpoint of the same step.

    Raises:
        UserError: its `trainer_state.json` is damaged.
    """
    newest = None
    if rank() == 0:
        complete = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
        newest = max(complete, key=step_of, default=None)
        if newest is not None:
            with reading_checkpoint(newest):
                TrainerState.load_from_json(str(newest / TRAINER_STATE_NAME))
        delete_checkpoints(folder, but=newest)
    return from_rank_0(newest)


def last_step(folder: Path) -> int:
    """Returns the step of the newest complete checkpoint in a trainer's folder, or 0. Every process calls this.

    Raises:
        UserError: as `last_checkpoint`.
    """
    checkpoint = last_checkpoint(folder)
    return 0 if checkpoint is None else step_of(checkpoint)


def reading_checkpoint(checkpoint: str | Path) -> AbstractContextManager[None]:
    """Returns a context in which an error of a damaged checkpoint becomes a UserError that names it."""
    return reading(Path(checkpoint), "delete this folder, and this training begins again")


def delete_checkpoints(folder: Path, but: Path | None = None) -> None:
    """Deletes the checkpoints in a trainer's folder. One that is half deleted is not complete."""
    for checkpoint in folder.glob("checkpoint-*"):
        if checkpoint != but:
            (checkpoint / COMPLETE).unlink(missing_ok=True)
            shutil.rmtree(checkpoint)


def _to_disk(folder: Path) -> None:
    """The marker must not outlive a power cut that the files it speaks for do not."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
