"""lmms-eval run on local files, and its tasks for them."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmms_eval
from datasets import Dataset, Image

from data.sample import Sample

TASKS = Path(lmms_eval.__file__).parent / "tasks"
LOCAL_TASK = """include: {task}
task: {name}
dataset_path: {folder}
dataset_name: null
dataset_kwargs: null
test_split: test
process_docs: null
lmms_eval_specific_kwargs:
  default:
    pre_prompt: ""
    post_prompt: {suffix}
"""


def write_task(folder: Path, base: str, samples: Sequence[Sample], suffix: str = "") -> str:
    """Writes a task of lmms-eval that asks local samples, and returns its name.

    Args:
        folder: of the task's file. The samples are written below it, in the columns of the public data set.
        base: the task of lmms-eval that it is, `pope` or `gqa`.
        samples: one picture and one question each.
        suffix: what the task adds to every question.
    """
    name = f"local_{base}"
    rows = [
        {
            "question_id": sample.id,
            "question": sample.turns[0][0].removeprefix("<image>\n"),
            "answer": sample.turns[0][1],
            "image": str(sample.images[0]),
        }
        for sample in samples
    ]
    (folder / name).mkdir(parents=True)
    Dataset.from_list(rows).cast_column("image", Image()).to_parquet(folder / name / "test.parquet")
    included = TASKS / base / f"{base}.yaml"
    task = LOCAL_TASK.format(task=included, name=name, folder=folder / name, suffix=json.dumps(suffix))
    (folder / f"{name}.yaml").write_text(task)
    return name


def run_harness(
    model: str, tasks: Path, output: Path, *, batch_size: int = 1, processes: int = 1, **model_args: Any
) -> dict[str, list[dict]]:
    """Returns the logged samples of each task in the folder `tasks`, in the order of its rows.

    Args:
        model: the harness' name of the model's class.
        tasks: the folder of `write_task`.
        output: an empty folder for what the harness writes.
        processes: number of processes, each with its share of the samples.
    """
    names = [path.stem for path in sorted(tasks.glob("*.yaml"))]
    arguments = ["--model", model, "--model_args", ",".join(f"{name}={value}" for name, value in model_args.items())]
    arguments += ["--tasks", ",".join(names), "--include_path", tasks, "--batch_size", batch_size, "--device", "cpu"]
    arguments += ["--log_samples", "--output_path", output]
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", processes] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "lmms_eval", *arguments]
    done = subprocess.run(
        list(map(str, command)), env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    logged = {name: list(output.rglob(f"*_samples_{name}.jsonl")) for name in names}
    assert done.returncode == 0 and all(logged.values()), done.stdout[-3000:] + done.stderr[-3000:]
    return {name: sorted(read_lines(file), key=lambda row: row["doc_id"]) for name, (file,) in logged.items()}


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
