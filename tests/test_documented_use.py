"""What docs/using.md and docs/publishing.md tell a user to type works, and the ways to ask give one answer."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

import scripts.chat
import scripts.publish
from checkpoints.build import build_student, load_dense
from checkpoints.export import export_checkpoint
from modeling.visual_plan import VisualPlan

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "using.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PUBLISH = re.findall(r"python scripts/publish\.py (.*)", (ROOT / "docs" / "publishing.md").read_text(encoding="utf-8"))
CHAT = re.findall(r"python scripts/chat\.py (.*)", PAGE)
FOLDER = "runs/tiny_sparse/checkpoint"


@pytest.fixture
def working_directory(tmp_path, monkeypatch) -> Path:
    """A folder in which the page's lines can be typed."""
    dense, processor = load_dense(ROOT / "checkpoints" / "tiny-llava", "float32")
    monkeypatch.setattr("checkpoints.export.verify", lambda *arguments: None)
    plan = VisualPlan.dense(8).replace(2, ffn=0).replace(5, tokens=0.3)
    export_checkpoint(build_student(dense, plan), processor, tmp_path / FOLDER, card="", probe={})
    picture = Image.new("RGB", (64, 48), "white")
    picture.paste("red", (10, 10, 40, 40))
    picture.save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path


@pytest.mark.slow
def test_pipeline_batch_and_chat_answer_alike(working_directory, run_script, monkeypatch):
    assert len(BLOCKS) == 2 and all(FOLDER in block for block in BLOCKS)
    names: dict = {}
    for block in BLOCKS:
        exec(compile(block, "docs/using.md", "exec"), names)
    answers = [answer.strip() for answer in names["answers"]]
    assert len(answers) == 32 and answers == answers[:2] * 16 and answers[0] != answers[1]
    assert names["answered"][0]["generated_text"].strip() == answers[0]
    (working_directory / "stdin").write_text(names["questions"][0])
    monkeypatch.setattr("sys.stdin", (working_directory / "stdin").open())
    done = run_script("chat.py", *shlex.split(CHAT[-1]))
    assert done.stdout.strip() == answers[0]


@pytest.mark.parametrize(
    "script, line", [*((scripts.chat, line) for line in CHAT), *((scripts.publish, line) for line in PUBLISH)]
)
def test_documented_options_are_there(script, line, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", *shlex.split(line)])
    assert str(script.parse_arguments().checkpoint) == FOLDER
