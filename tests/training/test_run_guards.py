"""What keeps a run from harm: one run in a folder, tasks that know of each other, trackers that are there."""

import os
import subprocess
import sys
from datetime import timedelta

import pytest
import torch

from modeling.user_error import UserError
from tests.processes import free_port
from training.distillation.monitoring.trackers import refuse_missing_trackers
from training.files import write_json
from training.recipe.base import BaseRecipe
from training.recipe.file import RECIPES, load_recipe
from training.run import Stage, execute, start_single_process

HOLDS = """
import sys, time
from pathlib import Path
from training.recipe.base import BaseRecipe
from training.run import Stage, execute

def wait(run):
    print("inside", flush=True)
    time.sleep(600)

execute(BaseRecipe(name="run", seed=0), [Stage("wait", "wait", wait)], Path(sys.argv[1]))
"""
ONE = [Stage("one", "one", lambda run: {})]


def test_one_run_at_a_time_in_a_folder_and_a_dead_one_does_not_hold_it(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)], cwd=RECIPES.parent, stdout=subprocess.PIPE, text=True
    )
    try:
        while "inside" not in (line := other.stdout.readline()):
            assert line or other.poll() is None, "the other run ended before it began"
        monkeypatch.setattr("training.run.WAIT_FOR_FOLDER", timedelta(0))
        for restart in (False, True):
            with pytest.raises(UserError, match="another process runs in it"):
                execute(BaseRecipe(name="run", seed=0), ONE, folder, restart=restart)
    finally:
        other.kill()
        other.wait()
    execute(BaseRecipe(name="run", seed=0), ONE, folder)
    assert (folder / "stages" / "one.json").exists()


REFUSES = """
import sys
from pathlib import Path
from modeling.user_error import UserError
from training.cli import run
from training.ranks import led_by_rank_0
from training.recipe.base import BaseRecipe
from training.run import Stage, execute

def alone(run):
    raise UserError("row 7 has no answer")

def led(run):
    return led_by_rank_0({}, lambda _: alone(run))

stages = {"alone": Stage("bad", "bad", alone), "led": Stage("bad", "bad", led, distributed=True)}
run(lambda: execute(BaseRecipe(name="run", seed=0), [stages[sys.argv[2]]], Path(sys.argv[1])))
"""


@pytest.mark.parametrize("kind", [pytest.param("alone", marks=pytest.mark.slow), "led"])
def test_what_rank_0_refuses_is_one_line_of_all_ranks(tmp_path, kind):
    """The others would die of a closed connection otherwise, each with a traceback."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", REFUSES, str(tmp_path / "run"), kind],
            cwd=RECIPES.parent,
            env={**os.environ, **place, "RANK": str(number), "LOCAL_RANK": str(number)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    said = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert "error: row 7 has no answer" in said[0] and "error:" not in said[1]
    assert not any("Traceback" in text for text in said), said


def test_tasks_of_srun_without_a_launcher_are_refused(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_PROCID", "3")
    with pytest.raises(UserError, match="srun started 8 tasks, and none of them knows of the others"):
        start_single_process()


def test_trackers_that_are_not_installed_are_refused():
    refuse_missing_trackers(["tensorboard"])
    with pytest.raises(UserError, match=r"training.report_to: got 'wandbb', which is not installed or not known"):
        refuse_missing_trackers(["tensorboard", "wandbb"])


def test_full_fine_tuning_in_bfloat16_without_fp32_weights_is_refused(monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    with pytest.raises(UserError, match="updates round away"):
        load_recipe("debug", ["lora=null", "model.dtype=bfloat16"])
    load_recipe("debug", ["lora=null", "model.dtype=bfloat16", "training.deepspeed=recipes/deepspeed/zero2.json"])
    load_recipe("debug", ["lora=null"])


def test_a_run_does_without_attention_that_is_planned_for_each_shape(tmp_path):
    """A training of 7B on a H200 stood at 1 % of its GPU with it: texts of every length were new to it."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    seen = []
    try:
        stage = Stage("look", "look", lambda run: seen.append(torch.backends.cuda.cudnn_sdp_enabled()) or {})
        execute(BaseRecipe(name="run", seed=0), [stage], tmp_path / "run")
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
    assert seen == [False]


def test_a_stage_looks_again_at_what_it_saw_while_others_are_left(tmp_path):
    looks = []

    def look_again(run):
        looks.append(run)
        raise UserError("1.png has another content")

    def stop(run):
        raise InterruptedError

    saw, stopped = Stage("saw", "", lambda run: {}, look_again=look_again), Stage("more", "", stop)
    with pytest.raises(InterruptedError):
        execute(BaseRecipe(name="run", seed=0), [saw, stopped], tmp_path / "run")
    assert not looks, "it has just been done"
    with pytest.raises(UserError, match="another content"):
        execute(BaseRecipe(name="run", seed=0), [saw, stopped], tmp_path / "run")
    write_json(tmp_path / "run" / "stages" / "more.json", {"seconds": 0})
    execute(BaseRecipe(name="run", seed=0), [saw, stopped], tmp_path / "run")
    assert len(looks) == 1, "a finished run reads no picture"
