import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from modeling.visual_plan import VisualPlan
from scripts import search
from tests.checkpoints.tiny_dense import NUM_LAYERS
from training.planners.tools.search import JOURNAL
from training.planners.tools.trials import TRIALS, read_trials
from training.planners.vtw import CURVE
from training.recipe.file import RECIPES

LLAVA_7B = RECIPES / "shapes" / "llava-1.5-7b.json"
FEW_SAMPLES = ("--num-samples", 4, "--batch-size", 2)


@pytest.mark.parametrize(
    "planner",
    [
        pytest.param(("vtw", "tolerance=0.5"), marks=pytest.mark.slow),
        pytest.param(("g_search", "tolerance=0.5", "trials=3", "full_layers=1"), marks=pytest.mark.slow),
        ("p_sigmoid", "--budget", 0.8, "trials=6", "full_layers=1"),
        pytest.param(("shortv", "--budget", 0.8), marks=pytest.mark.slow),
        ("greedy", "--budget", 0.5),
        ("fastv", "keep=0.5"),
    ],
    ids=lambda planner: planner[0],
)
def test_a_plan_is_found_and_drawn(dense_folder, tmp_path, run, planner):
    name, *settings = planner
    output = tmp_path / "found" / "plan.json"
    done = run(
        "--planner", name, "--model", dense_folder, "--data", "shapes", *FEW_SAMPLES, "--output", output, *settings
    )
    assert done.returncode == 0, done.stderr
    plan = VisualPlan.load(output)
    assert len(plan) == NUM_LAYERS
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "B: FLOPs, visual tokens" in done.stdout and f"written: {output}" in done.stdout
    measured = {path.name for path in output.with_suffix(".search").iterdir()} - {"search.json", "data", "calibration"}
    kls = {JOURNAL}
    tried = {TRIALS, f"{TRIALS}.guard"} | kls
    kept = {"vtw": {CURVE}, "g_search": tried, "p_sigmoid": tried, "shortv": kls, "greedy": kls}
    assert measured == kept.get(name, set())
    again = run(
        "--planner", name, "--model", dense_folder, "--data", "shapes", *FEW_SAMPLES, "--output", output, *settings
    )
    assert again.returncode == 0 and VisualPlan.load(output) == plan


def test_a_config_suffices_where_nothing_is_measured(tmp_path, run):
    output = tmp_path / "plan.json"
    assert run("--planner", "fastv", "--model", LLAVA_7B, "--budget", 0.25, "--output", output).returncode == 0
    assert [layer.tokens for layer in VisualPlan.load(output).layers][:3] == pytest.approx([1.0, 1.0, 0.2], abs=0.03)
    shorter = tmp_path / "shorter.json"
    done = run("--planner", "file", "--model", RECIPES / "shapes" / "internvl2-8b.json", "--output", shorter,
               f"path={output}", "relative_depth=true")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [layer.tokens for layer in VisualPlan.load(shorter).layers] == [1.0] * 2 + [
        VisualPlan.load(output).layers[2].tokens
    ] * 30


def test_your_own_data_is_measured_on(dense_folder, tmp_path, run):
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "red.png")
    turns = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "red"}]
    rows = [{"id": str(number), "image": "red.png", "conversations": turns} for number in range(4)]
    (tmp_path / "own.json").write_text(json.dumps(rows))
    arguments = (
        "--planner",
        "vtw",
        "--model",
        dense_folder,
        "--data",
        tmp_path / "own.json",
        "--output",
        tmp_path / "plan.json",
        *FEW_SAMPLES,
    )
    done = run(*arguments, "--images", tmp_path, "tolerance=0.1")
    assert done.returncode == 0, done.stderr
    assert "give `images`" in run(*arguments, "--output", tmp_path / "other.json", "tolerance=0.1").stderr


def test_a_family_is_measured_alone(dense_folder, tmp_path, run):
    def curve(*arguments):
        output = tmp_path / f"{len(arguments)}.json"
        done = run("--planner", "vtw", "--model", dense_folder, "--data", "shapes", *FEW_SAMPLES, "--output", output,
                   "tolerance=0.5", "hold_out=0", *arguments)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / f"{len(arguments)}.search" / CURVE).read_text())

    assert curve("--family", "caption") != curve()
    done = run(
        "--planner",
        "vtw",
        "--model",
        dense_folder,
        "--data",
        "shapes",
        "--output",
        tmp_path / "x.json",
        "tolerance=0.5",
        "--family",
        "poem",
    )
    assert done.returncode == 2 and "--num-samples: got 48, there are 0 usable samples" in done.stderr


def test_bad_input_is_one_line_and_exit_code_2(dense_folder, tmp_path, run):
    def refusal(*arguments, output=tmp_path / "plan.json"):
        done = run("--model", dense_folder, "--output", output, *arguments)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 2 and len(lines) == 1 and "Traceback" not in done.stderr
        assert not output.exists() or output.read_text() == "mine"
        return lines[0]

    assert "planner: got 'gates'; allowed: 'fastv'" in refusal("--planner", "gates", "--budget", 0.5)
    assert "unknown key tolerence, did you mean tolerance?" in refusal("--planner", "vtw", "tolerence=0.5")
    assert "give either a budget or tolerance" in refusal("--planner", "vtw")
    assert "give --data" in refusal("--planner", "vtw", "tolerance=0.5")
    assert "--num-samples: got 0" in refusal(
        "--planner", "vtw", "--data", "shapes", "--num-samples", 0, "tolerance=0.5"
    )
    assert "got 1.5" in refusal("--planner", "fastv", "--budget", 1.5)
    assert "expected key.sub=value" in refusal("--planner", "fastv", "keep")
    assert "ends in .json" in refusal("--planner", "fastv", "keep=0.5", output=tmp_path / "plan.yaml")
    assert "no such plan file" in refusal("--planner", "file", f"path={tmp_path / 'nothing.json'}")
    mine = tmp_path / "mine.json"
    mine.write_text("mine")
    assert "exists and is not of such a search" in refusal("--planner", "fastv", "keep=0.5", output=mine)
    assert (
        run("--model", dense_folder, "--planner", "fastv", "keep=0.5", "--output", tmp_path / "two.json").returncode
        == 0
    )
    done = run("--model", dense_folder, "--planner", "fastv", "keep=0.6", "--output", tmp_path / "two.json")
    assert done.returncode == 2 and "is of another search" in done.stderr


def test_another_models_units_are_refused(dense_folder, tmp_path, run):
    VisualPlan.dense(6).replace(2, heads=(0,)).save(tmp_path / "units.json")
    done = run(
        "--model",
        dense_folder,
        "--planner",
        "file",
        "--output",
        tmp_path / "plan.json",
        f"path={tmp_path / 'units.json'}",
        "relative_depth=true",
    )
    assert (
        done.returncode == 2 and "layer 2: got heads, allowed with relative_depth: all or none of them" in done.stderr
    )


@pytest.mark.slow
def test_a_killed_search_ends_as_it_would_have(tmp_path):
    def command(name):
        options = "--planner g_search --model checkpoints/tiny-llava --data shapes --num-samples 8 --batch-size 8"
        settings = ["tolerance=0.01", "full_layers=1", "trials=6", "--output", str(tmp_path / name)]
        return [sys.executable, search.__file__, *options.split(), *settings]

    root = Path(search.__file__).parents[1]
    subprocess.run(command("whole.json"), cwd=root, check=True, capture_output=True)
    journal = tmp_path / "killed.search" / TRIALS
    process = subprocess.Popen(command("killed.json"), cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not journal.exists() or journal.read_text().count('"state":1') < 8:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 1 < len(read_trials(journal)) < 7 and not (tmp_path / "killed.json").exists()
    subprocess.run(command("killed.json"), cwd=root, check=True, capture_output=True)
    assert read_trials(journal) == read_trials(tmp_path / "whole.search" / TRIALS)
    assert (tmp_path / "killed.json").read_text() == (tmp_path / "whole.json").read_text()


def test_a_broken_record_of_a_search_is_refused(tmp_path, run):
    output = tmp_path / "plan.json"
    (tmp_path / "plan.search").mkdir()
    (tmp_path / "plan.search" / "search.json").write_text("{")
    done = run("--planner", "fastv", "--model", LLAVA_7B, "--budget", 0.25, "--output", output)
    assert done.returncode == 2 and "search.json: not a JSON file" in done.stderr
