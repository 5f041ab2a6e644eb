"""The options of a dry run, and what it prints for a model that is larger than a device."""

import argparse
import re
import subprocess
import sys

import pytest

from modeling.user_error import UserError
from training.recipe.file import RECIPES, load_recipe
from training.tasks.dry_run import dry_run
from training.tasks.forecast.assumptions import Assumptions, add_options, assumptions

SIZES = {"80GiB": 80 * 2**30, "24 GB": 24 * 10**9, "512MiB": 2**29}
WRONG = {
    "--processes=0": "--processes: got '0', allowed: a whole number above 0",
    "--processes=1,two": "--processes: got 'two', allowed: a whole number above 0",
    "--device-memory=80": "--device-memory: got '80', allowed: a number and a unit (GiB, GB, MiB, MB), as in 80GiB",
    "--device-memory=0GiB": "--device-memory: got '0', allowed: a number above 0",
    "--device-flops=fast": "--device-flops: got 'fast', allowed: a number above 0",
    "--device-flops=inf": "--device-flops: got 'inf', allowed: a number above 0",
    "--rows=1.5": "--rows: got '1.5', allowed: a whole number above 0",
    "--text-tokens=-3": "--text-tokens: got '-3', allowed: a whole number above 0",
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def parsed(*arguments: str, dry: bool = True) -> Assumptions:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dry-run", action="store_true")
    add_options(parser)
    return assumptions(parser.parse_args([*arguments, *["--dry-run"] * dry]))


def test_options_and_the_launcher(monkeypatch):
    assert parsed() == parsed(dry=False) == Assumptions()
    assert parsed("--processes", "2,16").processes == (2, 16)
    assert parsed("--rows=665000", "--device-flops=2e14", "--text-tokens=300") == Assumptions(
        rows=665_000, device_flops=2e14, text_tokens=300
    )
    for text, size in SIZES.items():
        assert parsed("--device-memory", text).device_memory == size
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert parsed().processes == (16,)
    assert parsed("--processes=4").processes == (4,)


@pytest.mark.parametrize("option", WRONG)
def test_a_wrong_option_is_refused(option):
    with pytest.raises(UserError) as refused:
        parsed(option)
    assert str(refused.value) == WRONG[option]


def test_an_option_without_a_dry_run_is_refused_before_torch_is_imported():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "train.py", "--recipe", "debug", "--processes", "8"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "error: --processes: goes with --dry-run" in done.stderr
    assert not re.search(r"\| +torch$", done.stderr, re.MULTILINE)


@pytest.mark.slow
def test_a_model_larger_than_a_device_is_said_to_be_so_stage_by_stage(capsys):
    recipe = load_recipe("internvl2_26b_sparse", ["plan={planner: greedy, budget: {visual_flops: 0.25}}"])

    def rows(**assumed) -> dict[str, str]:
        dry_run(recipe, Assumptions(processes=(8,), **assumed))
        lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
        found: dict[str, str] = {}
        for line in lines:
            if len(line) == 2:
                found[line[0]] = f"{found.get(line[0], '')} | {line[1]}"
        return found

    large, small = rows(device_memory=10 * 80 * 2**30), rows(device_memory=40 * 2**30)
    for stage in ("calibrate", "plan", "evaluate", "export", "benchmark"):
        assert "does not fit" in small[stage] and "does not fit" not in large[stage]
    assert "does not fit" not in small["distil"]  # ZeRO-3 divides the weights
    for stage in ("calibrate", "plan", "distil", "evaluate"):  # device, machine, hours
        assert len(large[stage].split(" | ")) == 4
    assert rows(rows=665_298)["distil"].count("per") == 0


def test_of_several_processes_the_first_one_prints(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    dry_run(load_recipe("debug"))
    assert capsys.readouterr().out == ""
