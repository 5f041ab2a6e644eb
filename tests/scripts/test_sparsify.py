import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import sparsify
from training import cli

SCRIPT = Path(sparsify.__file__)
GOOD_PLAN = {"layers": [{"heads": [1], "ffn": [5, 60], "radius": 1}, {"attend": False, "ffn": 0}, {"tokens": 0.0}]}


def write_plan(folder, content):
    path = folder / "plan.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.slow
def test_a_plan_is_applied_and_exported(dense_folder, tmp_path):
    output = tmp_path / "sparse"
    arguments = [
        "--model",
        dense_folder,
        "--plan",
        write_plan(tmp_path, GOOD_PLAN),
        "--output",
        output,
        "--dtype",
        "bfloat16",
    ]
    run = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert f"written and verified: {output}" in run.stdout
    assert "| B: FLOPs, visual tokens |" in run.stdout
    config = json.loads((output / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["visual_plan"]["layers"][0] == {"heads": 1, "ffn": 2, "radius": 1}


@pytest.mark.parametrize(
    "plan, complaint",
    [
        ("{not json", "plan.json: not a JSON file"),
        ({"layers": [{}, {}]}, "got 2 layers, the model has 3"),
        ({"layers": [{"tokens": 0.0}, {"tokens": 0.5}, {}]}, "layer 1: tokens: got 0.5 after 0.0"),
        ({"layers": [{"head": 1}, {}, {}]}, "layer 0: layer: unknown key 'head'; did you mean 'heads'?"),
        ({"layers": [{}, {"ffn": 65}, {}]}, "layer 1: ffn: got 65, the model has 64"),
        ({"layers": [{}, {}, {"heads": [0, 2]}]}, "layer 2: heads: got 2, the model has 2"),
    ],
)
def test_a_bad_plan_is_one_line_and_exit_code_2(dense_folder, tmp_path, monkeypatch, capsys, plan, complaint):
    arguments = ["--model", dense_folder, "--plan", write_plan(tmp_path, plan), "--output", tmp_path / "sparse"]
    assert complaint in refusal(arguments, monkeypatch, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_other_bad_input_is_one_line_and_exit_code_2(dense_folder, tmp_path, monkeypatch, capsys):
    plan, output, full = write_plan(tmp_path, GOOD_PLAN), tmp_path / "sparse", tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("years of work")
    (tmp_path / "text_only").mkdir()
    (tmp_path / "text_only" / "config.json").write_text('{"model_type": "gpt2"}')
    for model, plan_path, output_dir, complaint in (
        (dense_folder, tmp_path / "no_plan.json", output, "no such plan file"),
        (tmp_path / "no_model", plan, output, "no such model in the folder"),
        (tmp_path / "text_only", plan, output, "'llava' with a 'llama'"),
        (dense_folder, plan, full, "not empty and not a sparse checkpoint"),
        (dense_folder, plan, plan, "is a file"),
    ):
        assert complaint in refusal(
            ["--model", model, "--plan", plan_path, "--output", output_dir], monkeypatch, capsys
        )
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json", "full", "text_only"}


def refusal(arguments, monkeypatch, capsys):
    """The one line on stderr with which the script ends."""
    monkeypatch.setattr(sys, "argv", ["sparsify.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.run(sparsify.main)
    assert exit_.value.code == 2
    complaints = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[transformers]")]
    assert len(complaints) == 1 and complaints[0].startswith("error: ")
    return complaints[0]
