"""What a trainer shows and writes while it trains: a progress bar and metrics.jsonl."""

import json
from pathlib import Path

from tqdm.auto import tqdm
from transformers import TrainerCallback

from training.files import write_text


class ProgressBar(TrainerCallback):
    """Shows one progress bar over all steps, with the last loss that was logged."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=args.run_name,
            unit="step",
            disable=not state.is_world_process_zero,
        )

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.4g}")

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


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
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def read_metrics(path: Path) -> list[dict]:
    """Returns the rows of a metrics.jsonl. A last line that was cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]
