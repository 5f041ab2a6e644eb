"""scripts/check_data.py from the outside: all that is wrong with a source in one run, and what would be learned."""

import json

import pytest
import torch
from PIL import Image

from data.token_view import readable
from tests.tiny_processor import tiny_processor


def row(number, question="what shape ?", answer="circle", **more):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": f"row-{number}", "conversations": turns, **more}


GOOD = [row(0), row(1, "<image> what shape ?", image="a.png")]
BAD = [
    row(2, "<video> what shape ?", video="a.png"),
    row(3, "<image> what shape ?", image="missing.png"),
    row(4, "<image> what shape ?", image="cut.png"),
    row(5, answer=""),
]


@pytest.fixture
def folder(tmp_path):
    picture = Image.effect_noise((64, 64), 50).convert("RGB")
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    return tmp_path


def source(folder, rows) -> str:
    (folder / "rows.json").write_text(json.dumps(rows))
    return f"{{path: {folder / 'rows.json'}, images: {folder}}}"


def test_every_problem_is_said_in_one_run(run, folder, dense_folder):
    done = run("--model", dense_folder, "--source", source(folder, GOOD + BAD))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for said in (
        "schema: llava, 6 rows",
        "good: 2, of which 1 have pictures and 0 have videos",
        "a video is shown, LlavaProcessor takes none",
        "missing.png",
        "cut.png",
        "empty answer",
    ):
        assert said in done.stdout, said
    assert "a run would refuse these data" in done.stderr


def test_samples_are_shown_with_what_is_learned(run, folder, dense_folder):
    done = run("--model", dense_folder, "--source", source(folder, GOOD), "--samples", 1)
    assert done.returncode == 0, done.stderr
    shown = [line for line in done.stdout.splitlines() if line.startswith("  sample")]
    assert len(shown) == 1 and "'row-0'" in shown[0] and shown[0].count("⟦") == shown[0].count("⟧") == 1
    assert "circle" in shown[0].split("⟦")[1].split("⟧")[0]


def test_a_recipe_is_checked_part_by_part(run):
    done = run("--recipe", "debug.yaml", "--samples", 0)
    assert done.returncode == 0, done.stderr
    assert "data.train: 24 samples; left out: none" in done.stdout
    done = run("--recipe", "debug.yaml", "--samples", 0, "data.max_length=170")
    assert done.returncode == 2
    assert "data.train: a run would stop" in done.stdout and "data.evaluation: a run would stop" in done.stdout


def test_bad_arguments_are_one_line(run, tmp_path, dense_folder):
    for arguments, message in (
        (("--source", "{path: a.json}"), "--model: it goes with --source"),
        (("--model", dense_folder, "--source", "[1]"), "--source: got '[1]'"),
        (("--model", dense_folder, "--source", "{path: a.json, imagez: b}"), "did you mean images?"),
        (("--recipe", "debug.yaml", "--samples", -1), "--samples: got -1"),
        (("--recipe", "tiny_teacher.yaml"), "the recipe has no sources"),
    ):
        done = run(*arguments)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, message
    done = run("--model", dense_folder, "--source", f"{{path: {tmp_path / 'none.json'}}}")
    assert done.returncode == 2 and "there is no such file" in done.stdout


def test_a_picture_is_written_once_and_learned_tokens_are_enclosed():
    tokenizer = tiny_processor().tokenizer
    word, other = tokenizer.encode("circle shape", add_special_tokens=False)[:2]
    input_ids = torch.tensor([*[word] * 5, other, word, word, other])
    labels = torch.full_like(input_ids, -100)
    labels[6:8] = input_ids[6:8]
    text = readable(input_ids, labels, tokenizer)
    name, rest = tokenizer.decode([word]), tokenizer.decode([other])
    assert text == f"{name} × 5 {rest}⟦{tokenizer.decode([word, word])}⟧{rest}"
