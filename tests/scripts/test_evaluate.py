"""scripts/evaluate.py from the outside: a table, files, and one clear line on bad input."""

import json
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from data.shapes.questions import QUESTION_FAMILIES
from data.shapes.world import SplitSettings, WorldSettings, write_world
from modeling.configuration_sparse_llava import SparseLlavaConfig
from modeling.layer_plan import LayerPlan
from modeling.modeling_sparse_llava import SparseLlavaForConditionalGeneration
from modeling.visual_plan import VisualPlan
from tests.tiny_processor import tiny_processor


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A dense and a sparse checkpoint of the same random weights, and a few questions."""
    root = tmp_path_factory.mktemp("evaluate")
    processor = tiny_processor()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    values = {
        "text_config": LlamaConfig(**sizes, vocab_size=len(processor.tokenizer)),
        "vision_config": CLIPVisionConfig(**sizes, image_size=24, patch_size=8),
        "image_token_id": processor.image_token_id,
    }
    torch.manual_seed(0)
    dense = LlavaForConditionalGeneration(LlavaConfig(**values))
    plan = VisualPlan((LayerPlan(heads=1), LayerPlan(read=False)))
    sparse = SparseLlavaForConditionalGeneration(SparseLlavaConfig(**values, visual_plan=plan.to_dict()))
    sparse.load_state_dict(dense.state_dict())
    for name, model in (("dense", dense), ("sparse", sparse)):
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    world = WorldSettings(seed=1, splits={"questions": SplitSettings(part="test", rows=2 * len(QUESTION_FAMILIES))})
    return {"dense": root / "dense", "sparse": root / "sparse", "data": write_world(root, world)["questions"]}


def test_sparse_beside_dense_and_grey(run, folders, tmp_path):
    result = tmp_path / "result.json"
    done = run(
        "--model",
        folders["sparse"],
        "--dense",
        folders["dense"],
        "--data",
        folders["data"],
        "--json",
        result,
        "--grey",
        "--batch-size",
        "4",
    )
    assert done.returncode == 0, done.stderr
    for word in (*QUESTION_FAMILIES, "dense", "model", "grey", "accuracy", "difference"):
        assert word in done.stdout
    content = json.loads(result.read_text())
    assert list(content["evaluations"]) == ["dense", "grey", "model"]
    assert all(evaluation["count"] == 2 * len(QUESTION_FAMILIES) for evaluation in content["evaluations"].values())
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result", "result.json", "result.png"]
    assert sorted(path.name for path in (tmp_path / "result").iterdir()) == [".lock", "dense", "grey", "model"]
    lines = [json.loads(line) for line in (tmp_path / "result/model/shapes.jsonl").read_text().splitlines()]
    records = content["evaluations"]["model"]["records"]
    assert [(line["question_id"], line["text"]) for line in lines] == [(r["id"], r["prediction"]) for r in records]
    assert set(lines[0]) == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}  # as LLaVA's
    shapes = content["benchmarks"]["shapes"]
    assert shapes["sparse"] - shapes["dense"] == pytest.approx(shapes["difference"])


def test_one_family_and_a_limit(run, folders, tmp_path):
    result = tmp_path / "result.json"
    arguments = ("--data", folders["data"], "--json", result)
    done = run("--model", folders["dense"], "--benchmarks", "shapes/reading,shapes/choice", "--limit", "3", *arguments)
    assert done.returncode == 0, done.stderr
    evaluation = json.loads(result.read_text())["evaluations"]["model"]
    assert {name: value["count"] for name, value in evaluation["families"].items()} == {"reading": 2, "choice": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--benchmarks", "shapes/poetry"), "--benchmarks: got 'shapes/poetry', allowed:"),
        (("--batch-size", "0"), "--batch-size: got 0, allowed: 1 or more"),
        (("--json", "result.png"), "--json: got result.png, allowed: a name that ends in .json"),
        (("--images", "."), "--images: got a folder without a file of rows"),
        (("--data", "absent.json"), "absent.json"),
        (("--benchmarks", "shapes,poetry"), "--benchmarks: got 'poetry', allowed:"),
        (("--benchmarks", "shapes,shapes"), "--benchmarks: got shapes twice"),
        (("--hub", "lmms-lab"), "--hub: shapes is not on the Hub"),
        (("--submission",), "--submission: needs --json"),
        (("--submission", "--json", "absent.json"), "--submission: shapes has none"),
        (("--benchmarks", "pope", "--images", "."), "--images: is for a file of rows, and pope is none"),
        (("--json", "/dev/null/absent.json"), "--json: /dev/null/absent.json cannot be written"),
        (("--model", "no/such/folder"), "no/such/folder: neither a model folder"),
    ],
)
def test_bad_input_is_one_line_and_code_2(run, folders, arguments, message):
    defaults = () if "--images" in arguments or "--data" in arguments else ("--data", folders["data"])
    done = run("--model", folders["dense"], *defaults, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_both_models_are_looked_at_before_one_is_asked(run, folders, tmp_path):
    """The dense model is asked first, which takes hours. A misspelt sparse one must not be found only then."""
    arguments = ("--dense", folders["dense"], "--data", folders["data"], "--json", tmp_path / "result.json")
    done = run("--model", tmp_path / "misspelt", *arguments)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and "misspelt" in done.stderr
    assert not list(tmp_path.iterdir())


def test_answers_are_not_written_into_a_model(run, folders):
    before = sorted(folders["dense"].iterdir())
    done = run("--model", folders["dense"], "--data", folders["data"], "--json", folders["dense"].with_suffix(".json"))
    assert done.returncode == 2 and "is a model, and the answer files would lie in it" in done.stderr
    assert sorted(folders["dense"].iterdir()) == before


def test_two_evaluations_do_not_write_in_one_place(run, folders, tmp_path):
    """The workers of a launcher that was killed may live on."""
    (tmp_path / "result").mkdir()
    with FileLock(tmp_path / "result" / ".lock"):
        done = run("--model", folders["dense"], "--data", folders["data"], "--json", tmp_path / "result.json")
    assert done.returncode == 2 and "another process writes" in done.stderr
