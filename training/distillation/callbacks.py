"""What a trainer shows and writes while it trains: its progress and metrics.jsonl."""

import json
from pathlib import Path

from transformers import TrainerCallback

from training.files import append_text, reading, write_text
from training.progress import Progress


class TrainingProgress(TrainerCallback):
    """Shows the progress over all steps, with what was logged last: the loss, samples per second and the time left."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.progress = Progress(desc=args.run_name, unit="step", total=state.max_steps, initial=state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self.progress.update(state.global_step - self.progress.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.progress.set_postfix_str(
                f"loss {logs['loss']:.4g}, {logs['samples_per_second']:.3g} samples/s", refresh=False
            )

    def on_train_end(self, args, state, control, **kwargs):
        self.progress.close()


class ValidateEvery(TrainerCallback):
    """Has the trainer look at the held-out samples every so many steps, and after the last one."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0 or state.global_step >= state.max_steps:
            control.should_evaluate = True


class MetricsFile(TrainerCallback):
    """Appends every log to a file, one JSON object per line.

    A run that continues from a checkpoint first drops the rows of later steps, as it will log them again.

    Args:
        path: the file.
    """

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            rows = [row for row in read_metrics(self.path) if row["step"] <= state.global_step]
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def on_log(self, args, state, control, logs=None, **kwargs):
        # The summary knows only the steps since this start. Its mean loss would pass for that of the whole training,
        # and where the training was stopped it is none at all.
        is_summary = "train_loss" in logs
        logs = {name: value for name, value in logs.items() if name != "train_loss"}
        if state.is_world_process_zero and not (is_summary and state.global_step < state.max_steps):
            append_text(self.path, json.dumps({"step": state.global_step, **logs}) + "\n")


def read_metrics(path: Path) -> list[dict]:
    """Returns the rows of a metrics.jsonl. A last line that was cut short is left out.

    Raises:
        UserError: another line is damaged.
    """
    if not path.exists():
        return []
    with reading(path, "delete its damaged lines, which only the report reads"):
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]
