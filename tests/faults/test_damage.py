"""A damaged file of a run folder is named in one line that says what can be done. None is taken for a whole one."""

import errno
import json
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from modeling.user_error import UserError
from tests.training.distillation.test_trainer import DATASET, trainer
from training import cli
from training.distillation.callbacks import read_metrics
from training.distillation.datasets import INDEXES, whole_mixture
from training.distillation.students import train_and_save
from training.distillation.teacher_answers import AnsweredDataset
from training.distillation.trainer_checkpoints import last_checkpoint
from training.evaluation.results import Evaluation
from training.files import append_text, write_text, writing
from training.gates.learning import learned_adapters
from training.journal import Journal
from training.measure.calibration import Calibration
from training.measure.latency import LatencyTable
from training.recipe.base import BaseRecipe
from training.recipe.file import load_recipe
from training.run import Run, Stage, execute


def journaled(path: Path) -> list:
    return list(Journal(path, "subject").items())


def opened(path: Path) -> None:
    """Starts a run again, whose first stage is done."""
    stages = path.parent / "stages"
    stages.mkdir(exist_ok=True)
    (stages / "one.json").write_text('{"seconds": 0}')
    one, two = (Stage(name, name, lambda run: {}) for name in ("one", "two"))
    execute(BaseRecipe(name="run", seed=0), [one, two], path.parent)


def indexed(path: Path) -> None:
    path.with_name(INDEXES).write_text(json.dumps({"train": [path.name]}))
    whole_mixture(load_recipe("debug"), "train", None, path.parent)


HALF, NO_OBJECT = b'{"records": [{"a', b"null"
READERS = {
    "recipe.yaml": (opened, "or begin again with --restart", (b"a: [1", b"null", b"\xff\xfe")),
    "inputs.json": (opened, "or begin again with --restart", (HALF, b"[")),
    "stages/data.json": (
        lambda path: Run(None, path.parents[1]).result("data"),
        "delete it, and the next start does this stage again",
        (HALF, b""),
    ),
    "data/0123.arrow": (indexed, "delete this folder and the result of `data`", (b"", b"ARROW1\0\0" + bytes(99))),
    "calibration.safetensors": (Calibration.load, "result of `calibrate`", (b"", bytes(99))),
    "latency.json": (LatencyTable.load, "result of `calibrate`", (HALF, NO_OBJECT, b"{}")),
    "teacher_answers.safetensors": (
        lambda path: AnsweredDataset(DATASET, path),
        "delete it and the result of `ask`",
        (b"", bytes(99)),
    ),
    "gates/weights/adapter_model.safetensors": (
        lambda path: learned_adapters(path.parents[1]),
        "and the results of `learn`",
        (b"", bytes(99)),
    ),
    "evaluation/teacher.json": (Evaluation.load, "result of `evaluate`", (HALF, NO_OBJECT, b'{"records": [{}]}')),
    "metrics.jsonl": (read_metrics, "delete its damaged lines", (b'{"step": 1}\n{"st\n{"step": 3}\n',)),
}


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_named_with_what_can_be_done(tmp_path, name):
    read, mend, damages = READERS[name]
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name == "inputs.json":
        write_text(tmp_path / "recipe.yaml", "name: run\nseed: 0\n")
    for damage in damages:
        path.write_bytes(damage)
        with pytest.raises(UserError) as refused:
            read(path)
        said = str(refused.value)
        assert "is damaged (" in said and mend in said and "\n" not in said and len(said) < 480 + len(str(path))
        assert str(path) in said or (name.endswith(".arrow") and str(path.parent) in said)


def test_a_damaged_line_of_kept_answers_is_answered_again(tmp_path):
    path = tmp_path / "rank-0.jsonl"
    Journal(path, "subject").add("7", ["red"])
    lines = [b"null", b"5", b'{"key": "8"}', b'{"key": 1, "value": 2}', b"\xff", b"[" * 100_000, b""]
    path.write_bytes(path.read_bytes() + b"\n".join(lines))
    assert journaled(path) == [("7", ["red"])]


class Stop(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise InterruptedError


OF_A_CHECKPOINT = ("trainer_state.json", "optimizer.pt", "adapter_model.safetensors", "rng_state.pth")


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_A_CHECKPOINT)
def test_a_damaged_checkpoint_is_named(tmp_path, name):
    settings = {"max_steps": 3, "save_steps": 2}
    with pytest.raises(InterruptedError):
        train_and_save(trainer(tmp_path / "trainer", callbacks=[Stop()], **settings), tmp_path)
    checkpoint = last_checkpoint(tmp_path / "trainer")
    whole = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="checkpoint-2: is damaged .*; delete this folder, and this training begins"):
        train_and_save(trainer(tmp_path / "trainer", **settings), tmp_path)
    (checkpoint / name).write_bytes(whole)
    train_and_save(trainer(tmp_path / "trainer", **settings), tmp_path)
    assert (tmp_path / "weights").exists()


# ---- what cannot be written ----

WRITES = {
    "text": lambda path: write_text(path, "x" * 10_000),
    "lines": lambda path: append_text(path, "x" * 10_000),
    "safetensors": lambda path: save_file({"x": torch.zeros(10_000)}, path),
    "torch": lambda path: torch.save(torch.zeros(10_000), path),
}


@pytest.fixture
def small_files():
    """No file may be larger than 1,000 bytes, which fails as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", WRITES)
def test_what_cannot_be_written_is_named_whoever_writes_it(tmp_path, small_files, capfd, name):
    def main():
        with writing(tmp_path / name):
            WRITES[name](tmp_path / name)

    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == 2
    why = os.strerror(errno.EIO if name == "torch" else errno.EFBIG)  # torch does not say why
    assert capfd.readouterr().err == f"error: {tmp_path / name}: {why}\n"


def test_other_errors_are_not_taken_for_those_of_files(tmp_path):
    for error in (RuntimeError("shapes differ"), KeyError("x"), UserError("no such planner")):
        with pytest.raises(type(error)), writing(tmp_path):
            raise error
