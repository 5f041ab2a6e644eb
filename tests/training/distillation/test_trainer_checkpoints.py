"""A training that is stopped or killed at any moment ends as one that was not."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import time

import pytest
from transformers import Trainer, TrainerCallback, TrainerState

from tests.processes import run_processes
from tests.training.distillation.monitoring.test_validation import validation
from tests.training.distillation.test_trainer import DATASET, trainer
from training import stops
from training.distillation.callbacks import read_metrics
from training.distillation.students import train_and_save
from training.distillation.trainer import DistillationTrainer
from training.distillation.trainer_checkpoints import last_checkpoint, last_step
from training.starts import COMPLETE


@pytest.fixture
def listening(monkeypatch):
    """Signals are received as in a run."""
    before = {number: signal.signal(number, stops._receive) for number in (signal.SIGTERM, signal.SIGUSR1)}
    monkeypatch.setattr(stops, "_received", None)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class At(TrainerCallback):
    """Does something in the forward passes of a step, before it ends."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            self.action()


def begin(folder, *callbacks, dataset=DATASET, **settings):
    settings = {"max_steps": 5, "save_steps": 100, "micro_batch_size": 2} | settings
    return trainer(folder / "trainer", callbacks=callbacks, dataset=dataset, **settings)


def rows(folder, *names):
    names = names or ("step", "loss", "cross_entropy", "forward_kl", "grad_norm", "learning_rate")
    found = [row for row in read_metrics(folder / "trainer" / "metrics.jsonl") if "loss" in row]
    return [[row[name] for name in names] for row in found]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    train_and_save(begin(folder), folder)
    return folder


def assert_as_whole(folder, whole):
    flat = [value for row in rows(folder) for value in row]
    assert flat == pytest.approx([value for row in rows(whole) for value in row], rel=1e-5)


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGTERM, 1), pytest.param(signal.SIGUSR1, 0, marks=pytest.mark.slow)]
)
def test_a_signal_saves_at_the_end_of_its_step(tmp_path, listening, monkeypatch, whole, number, workers):
    def tell_all():
        loading = [child.pid for child in multiprocessing.active_children()]
        assert len(loading) == workers
        for _ in range(2):  # a scheduler tells the whole group, and the launcher once more
            subprocess.run(["kill", f"-{number.value}", *map(str, (*loading, os.getpid()))], check=True)
        time.sleep(0.5)

    stopping = At(2, tell_all)
    with pytest.raises(stops.Stopped):
        train_and_save(begin(tmp_path, stopping, num_workers=workers), tmp_path)
    assert last_checkpoint(tmp_path / "trainer").name == "checkpoint-2"
    assert not (tmp_path / "weights").exists()
    metrics = read_metrics(tmp_path / "trainer" / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2], "no summary of a training that has not ended"
    monkeypatch.setattr(stops, "_received", None)
    train_and_save(begin(tmp_path), tmp_path)
    assert_as_whole(tmp_path, whole)
    assert (tmp_path / "weights").exists() and not list(tmp_path.rglob("checkpoint-*"))
    assert "train_loss" not in read_metrics(tmp_path / "trainer" / "metrics.jsonl")[-1]


def test_a_signal_in_the_last_step_saves_the_weights(tmp_path, listening, whole):
    stopping = At(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(stops.Stopped):
        train_and_save(begin(tmp_path, stopping), tmp_path)
    assert (tmp_path / "weights").exists()
    assert_as_whole(tmp_path, whole)


class Killed(Exception):
    """Stands for SIGKILL: nothing is done after it."""


@pytest.mark.parametrize("written", ["adapter", "state", "all but the marker"])
def test_a_checkpoint_counts_only_when_it_is_complete(tmp_path, monkeypatch, whole, written):
    def torn(self, model, trial):
        if self.state.global_step < 4:
            return saved(self, model, trial)
        if written == "all but the marker":
            saved(self, model, trial)
            raise Killed
        folder = tmp_path / "trainer" / "checkpoint-4"
        self.save_model(str(folder))
        if written == "state":
            self._save_optimizer_and_scheduler(str(folder))
            (folder / "trainer_state.json").touch()  # opened, and not yet filled
        raise Killed

    saved = Trainer._save_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoint", torn)
        with pytest.raises(Killed):
            train_and_save(begin(tmp_path, save_steps=2), tmp_path)
    assert (tmp_path / "trainer" / "checkpoint-4").exists()
    assert last_checkpoint(tmp_path / "trainer").name == "checkpoint-2", "the one before is kept until then"
    assert not (tmp_path / "trainer" / "checkpoint-4").exists()
    train_and_save(begin(tmp_path, save_steps=2), tmp_path)
    assert_as_whole(tmp_path, whole)


def test_a_kill_between_the_last_step_and_the_weights_trains_no_step_too_many(tmp_path, monkeypatch, whole):
    def killed(self, output_dir, *arguments, **keywords):
        if output_dir.endswith("weights.partial"):
            raise Killed
        saved(self, output_dir, *arguments, **keywords)

    saved = DistillationTrainer.save_model
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(DistillationTrainer, "save_model", killed)
            with pytest.raises(Killed):
                train_and_save(begin(tmp_path), tmp_path)
    train_and_save(begin(tmp_path), tmp_path)
    assert_as_whole(tmp_path, whole)


def test_a_half_deleted_checkpoint_does_not_count(tmp_path, monkeypatch):
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / COMPLETE).write_text("{}")
        TrainerState().save_to_json(str(tmp_path / f"checkpoint-{step}" / "trainer_state.json"))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            last_checkpoint(tmp_path)
    assert not (tmp_path / "checkpoint-2" / COMPLETE).exists()
    assert last_checkpoint(tmp_path).name == "checkpoint-4"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_a_changed_interval_holds_after_a_checkpoint(tmp_path):
    kill = At(3, lambda: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        begin(tmp_path, kill, save_steps=2, logging_steps=2).train()
    seen = []

    class Saved(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            seen.append(state.global_step)

    begin(tmp_path, Saved(), save_steps=1, logging_steps=1).train()
    assert seen == [3, 4]
    assert [step for (step,) in rows(tmp_path, "step")] == [2, 3, 4, 5]


@pytest.mark.slow
def test_another_micro_batch_goes_on_with_the_same_samples(tmp_path):
    """Three steps an epoch, the last of them with two samples, and a stop within the second epoch."""
    data, before = DATASET + DATASET[:2], {"max_steps": 7, "micro_batch_size": 2, "gradient_accumulation_steps": 2}
    train_and_save(begin(tmp_path / "whole", dataset=data, **before), tmp_path / "whole")
    kill = At(5, lambda: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        begin(tmp_path / "cut", kill, dataset=data, save_steps=4, **before).train()
    after = before | {"micro_batch_size": 4, "gradient_accumulation_steps": 1}
    train_and_save(begin(tmp_path / "cut", dataset=data, **after), tmp_path / "cut")
    names = ("step", "loss", "cross_entropy", "learning_rate")
    expected = [value for row in rows(tmp_path / "whole", *names) for value in row]
    assert [value for row in rows(tmp_path / "cut", *names) for value in row] == pytest.approx(expected, rel=1e-4)


def one_rank_is_told(folder):
    """Rank 1 alone is told in its second step; returns the checkpoint of each rank."""
    from training.ranks import rank

    def tell():
        if rank() == 1:
            stops._received = signal.SIGTERM

    try:
        begin(folder, At(2, tell), micro_batch_size=1).train()
    except stops.Stopped:
        return last_checkpoint(folder / "trainer").name
    return None


@pytest.mark.slow
def test_all_ranks_stop_where_one_is_told(tmp_path):
    assert run_processes(2, one_rank_is_told, tmp_path) == ["checkpoint-2"] * 2


def test_a_training_that_pauses_goes_on_as_one_that_does_not(tmp_path, whole):
    """It looks at the held-out samples at each pause, and has its own schedule of all steps throughout."""
    for pause_at in (1, 3):
        train_and_save(begin(tmp_path, validation=validation(steps=100), pause_at=pause_at), tmp_path)
        assert last_step(tmp_path / "trainer") == pause_at
        assert not (tmp_path / "weights").exists()
    train_and_save(begin(tmp_path), tmp_path)
    assert_as_whole(tmp_path, whole)
    seen = [row["step"] for row in read_metrics(tmp_path / "trainer" / "metrics.jsonl") if "eval_loss" in row]
    assert seen == [1, 3]
    assert not list(tmp_path.rglob("checkpoint-*"))
