"""scripts/benchmark.py gives figures that are whole and honest, and one clear line on bad input.

The models it compares share their weights.
"""

import ast
import json
import sys
from pathlib import Path

import pytest
import torch

from checkpoints.families import reference_images
from modeling.layer_plan import LayerPlan
from modeling.modeling_sparse_llava import SparseLlavaForConditionalGeneration
from modeling.visual_plan import VisualPlan
from tests.families.llava_next import LLAVA_NEXT
from tests.tiny_student import tiny_batch, tiny_student
from training.measure.clock.benchmark import measured_kv_bytes, predicted_costs, stock_twin
from training.measure.clock.prompt import Prompt
from training.measure.clock.shapes import carried_plan, random_model, shape_of_file, shape_of_sizes

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "benchmark.py"
SHAPE = ("--hidden-size", "128", "--layers", "2", "--visual-tokens", "16", "--text-tokens", "6")
QUICK = (
    "--batch-sizes",
    "1,2",
    "--decode-tokens",
    "2",
    "--repeats",
    "2",
    "--neighbour-sides",
    "4,8",
    "--device",
    "cpu",
)
PLAN = VisualPlan((LayerPlan(heads=1, ffn=0, attend=False), LayerPlan(tokens=0.0)))


@pytest.fixture
def plan_file(tmp_path) -> Path:
    PLAN.save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def test_shape_mode_writes_whole_figures(run, plan_file, tmp_path):
    done = run(*SHAPE, *QUICK, "--plan", plan_file, "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.png", "plan.json"]
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["plan"] == PLAN.to_dict()
    assert report["shape"]["visual_tokens"] == 16 and report["shape"]["num_heads"] == 2
    for cost in report["flops"].values():
        assert 0 < cost["sparse"] < cost["dense"] and cost["left"] == cost["sparse"] / cost["dense"]
    assert [row["batch_size"] for row in report["batches"]] == [1, 2]
    for row in report["batches"]:
        prefill = row["prefill"]
        assert prefill["speedup"] == prefill["dense"]["median"] / prefill["sparse"]["median"]
        assert prefill["speedup_over_flops_ratio"] == pytest.approx(prefill["speedup"] * report["flops"]["C"]["left"])
        assert prefill["sparse"]["least"] <= prefill["sparse"]["median"] <= prefill["sparse"]["greatest"]
        assert row["decode"]["tokens_per_second"]["sparse"] > 0 and row["peak_memory_bytes"] is None
    assert [row["tokens"] for row in report["neighbours"]] == [16, 64]
    assert "peak memory: measured on a GPU only" in done.stdout


def test_without_matplotlib_there_is_no_plot_and_a_line_says_so(run, plan_file, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "training.measure.clock.benchmark_plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = run(*SHAPE, *QUICK, "--plan", plan_file, "--json", tmp_path / "out.json")
    assert done.returncode == 0 and "no plot: matplotlib is not installed" in done.stdout
    assert (tmp_path / "out.json").exists() and not (tmp_path / "out.png").exists()


def test_checkpoint_mode(run, tmp_path):
    model = tiny_student(num_layers=2)
    model.set_visual_plan(PLAN)
    model.save_pretrained(tmp_path / "sparse")
    done = run("--model", tmp_path / "sparse", *QUICK, "--text-tokens", "6")
    assert done.returncode == 0, done.stderr
    assert "prefill, batch 2" in done.stdout


def test_twin_is_the_stock_model_over_the_same_tensors():
    sparse = tiny_student()
    twin = stock_twin(sparse)
    shared = dict(sparse.named_parameters())
    assert all(parameter.data_ptr() == shared[name].data_ptr() for name, parameter in twin.named_parameters())
    batch = {name: value for name, value in tiny_batch((1,)).items() if name != "labels"}
    text = batch["input_ids"] != sparse.config.image_token_id
    with torch.no_grad():
        expected = twin(**batch).logits[text]
        torch.testing.assert_close(sparse(**batch).logits[text], expected)
        with sparse.use_plan(VisualPlan.dense(3).replace(0, read=False)):
            assert (sparse(**batch).logits[text] - expected).abs().max() > 1e-3


def test_prefill_of_the_decoder_alone_is_what_the_plan_promises():
    """The dense cache holds what is predicted; and no picture token slips into the text of a prompt."""
    sparse = tiny_student()
    prompt = Prompt.random(sparse, 2, 50)
    assert prompt.visual_mask.sum(1).tolist() == [9, 9]
    layers, units, head_dim, tokens = 3, 2, 8, 59
    found = measured_kv_bytes({"dense": stock_twin(sparse)}, 50)
    assert found["dense"] == layers * 2 * units * head_dim * tokens * 4


def test_what_separates_the_rows_of_a_picture_is_text():
    """LLaVA-NeXT's newlines stand at image tokens. They are in the prompt, the cache and the promise, not visual."""
    sparse = LLAVA_NEXT[0].sparse(VisualPlan.dense(3).replace(0, heads=1).replace(1, tokens=0.0))
    (whole, (rows, columns)) = reference_images(sparse.config)[0]
    prompt = Prompt.random(sparse, 2, 10)
    assert prompt.input_ids.shape == (2, 10 + whole[0] * whole[1] + rows * (columns + 1))
    assert prompt.visual_mask.sum(1).tolist() == [whole[0] * whole[1] + rows * columns] * 2
    with torch.no_grad():
        stock_twin(sparse)(input_ids=prompt.input_ids, **prompt.pictures)
        sparse(input_ids=prompt.input_ids, **prompt.pictures)
    predicted = predicted_costs(sparse, 10)["kv_bytes"]["predicted"]
    assert measured_kv_bytes({"dense": stock_twin(sparse), "sparse": sparse}, 10) == predicted


def test_carried_plan_keeps_depth_and_shares(tmp_path):
    model = tiny_student(num_layers=2)
    model.set_visual_plan(VisualPlan((LayerPlan(heads=(1,), ffn=6, radius=1), LayerPlan(tokens=0.0, heads=0))))
    model.save_pretrained(tmp_path)
    shape = shape_of_sizes(512, 4, 576)
    first, last = LayerPlan(heads=4, ffn=344, radius=1), LayerPlan(tokens=0.0, heads=0)
    assert carried_plan(tmp_path, shape) == VisualPlan((first, first, last, last))


@pytest.mark.parametrize("name", ["llava-1.5-7b.json", "llava-1.5-13b.json"])
def test_true_shapes_build(name):
    shape = shape_of_file(ROOT / "recipes" / "shapes" / name)
    plan = VisualPlan.dense(shape.text_config.num_hidden_layers)
    model = random_model(shape, plan, torch.bfloat16, "meta")
    assert isinstance(model, SparseLlavaForConditionalGeneration) and model.dtype == torch.bfloat16


BAD = {
    "not a square": (
        ("--hidden-size", "64", "--visual-tokens", "15"),
        "visual tokens: got 15, allowed: a square number",
    ),
    "odd width": (("--hidden-size", "100"), "hidden size: got 100, allowed: multiples of 64"),
    "no batch": ((*SHAPE, "--batch-sizes", "1,0"), "--batch-sizes: got '1,0', allowed: comma-separated numbers"),
    "no repeats": ((*SHAPE, "--repeats", "0"), "--repeats: got 0, allowed: 1 or more"),
    "no such plan": ((*SHAPE, "--plan", "nowhere.json"), "nowhere.json: no such plan file"),
    "no such model": (("--model", "nowhere"), "nowhere: no config.json there"),
    "no such config": (("--config", "nowhere.json"), "nowhere.json: no such file"),
    "other suffix": ((*SHAPE, "--json", "out.txt"), "--json: got out.txt, allowed: a name that ends in .json"),
}


@pytest.mark.parametrize("arguments, message", BAD.values(), ids=BAD.keys())
def test_bad_input_gets_one_line(run, arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_plan_of_another_depth_is_refused(run, tmp_path):
    VisualPlan.dense(3).save(tmp_path / "plan.json")
    done = run(*SHAPE, "--plan", tmp_path / "plan.json", "--json", tmp_path / "out.json")
    assert done.returncode == 2 and "got 3 layers, the model has 2" in done.stderr
    assert not (tmp_path / "out.json").exists()


def test_dense_checkpoint_is_refused(run, tmp_path):
    stock_twin(tiny_student()).save_pretrained(tmp_path)
    done = run("--model", tmp_path)
    assert done.returncode == 2 and "not a sparse checkpoint" in done.stderr


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_broken_config_of_a_checkpoint_is_refused(run, tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    done = run("--model", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "config.json: " in done.stderr


def test_checkpoint_without_weights_is_refused(run, tmp_path):
    tiny_student().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    done = run("--model", tmp_path)
    assert done.returncode == 2 and "no readable safetensors weights" in done.stderr


def test_needs_torch_and_transformers_alone():
    """Follows the script's imports through the project; matplotlib stands behind the one door that may be shut."""
    found, todo, seen = set(), [SCRIPT], set()
    while todo:
        path = todo.pop()
        if path in seen or path.name == "benchmark_plot.py":
            continue
        seen.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                todo.append(path.parent / f"{node.module}.py")
                continue
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                own = ROOT / name.replace(".", "/")
                if own.is_dir():  # the families are found in it by name
                    todo += own.glob("*.py")
                elif own.with_suffix(".py").exists():
                    todo.append(own.with_suffix(".py"))
                else:
                    found.add(name.split(".")[0])
    outside = found - set(sys.stdlib_module_names)
    with_transformers = {"huggingface_hub", "safetensors"}
    assert outside == {"torch", "transformers"} | with_transformers, outside
