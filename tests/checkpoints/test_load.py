"""Loading a checkpoint of either kind, and refusing half of one."""

import ast
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from checkpoints.build import build_student, load_dense
from checkpoints.load import load_checkpoint
from modeling.modeling_sparse_llava import SparseLlavaForConditionalGeneration
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from tests.checkpoints.tiny_dense import save_tiny_dense, tiny_dense
from tests.tiny_processor import tiny_processor
from tests.tiny_student import tiny_student


@pytest.fixture
def folder(tmp_path):
    tiny_student().save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    return tmp_path


def test_a_sparse_checkpoint_comes_back_whole(folder):
    model, processor = load_checkpoint(folder, torch.float32)
    assert isinstance(model, SparseLlavaForConditionalGeneration)
    expected = tiny_student().state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert processor.tokenizer.eos_token == "</s>"


def test_missing_weights_are_not_made_up(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights[sorted(weights)[0]]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="1 weights are missing, first "):
        load_checkpoint(folder, torch.float32)


def test_no_weights_and_no_processor_are_named(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no readable safetensors weights"):
        load_checkpoint(folder, torch.float32)


def test_what_is_not_sparse_goes_to_the_dense_loader(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "blip"}))
    with pytest.raises(UserError, match="supported: .*'llava'"):
        load_checkpoint(folder, torch.float32)
    with pytest.raises(UserError, match="absent"):
        load_checkpoint(folder / "absent", torch.float32)


@pytest.mark.parametrize("changes", [{"visual_plan": 3}, {"vision_config": {"model_type": "nope"}}])
def test_a_sparse_config_that_transformers_refuses_is_refused(folder, changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match="not a whole sparse checkpoint"):
        load_checkpoint(folder, torch.float32)


def test_a_broken_config_is_refused(folder):
    for content, complaint in (("{", "not a JSON file"), ("[1]", "got list, expected a JSON object")):
        (folder / "config.json").write_text(content)
        with pytest.raises(UserError, match=f"config.json: {complaint}"):
            load_checkpoint(folder, torch.float32)


def private_bytes() -> int:
    """Memory that this process can share with no other. Pages of a file that were only read are not among it."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return 1024 * int(re.search(r"^Private_Dirty: +(\d+) kB", text, re.MULTILINE)[1])


def growth_of_loading(folder: Path, dtype: torch.dtype) -> int:
    before = private_bytes()
    model, _ = load_dense(folder, dtype)
    student = build_student(model, VisualPlan.dense(model.config.text_config.num_hidden_layers))
    for parameter in student.parameters():
        parameter.sum()  # every page is read
    return private_bytes() - before


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells what is private")
def test_weights_in_their_stored_dtype_are_shared_by_all_processes_of_a_machine(tmp_path):
    """They are mapped from the file, and so lie in memory once, whatever the number of processes."""
    save_tiny_dense(tmp_path)
    config = tiny_dense()[0].config
    config.text_config.hidden_size, config.text_config.intermediate_size = 512, 8192
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size > 100 << 20
    assert growth_of_loading(tmp_path, torch.float32) < 0.3 * size
    assert growth_of_loading(tmp_path, torch.bfloat16) > 0.4 * size, "another dtype is a copy: what is measured works"


def asks_at_a_terminal(source: str) -> list[str]:
    """Calls by which transformers may ask whether code may run: those of Auto classes that do not say it."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        ast.unparse(call)
        for call in calls
        if re.fullmatch(r"Auto\w+\.from_pretrained", ast.unparse(call.func))
        and "trust_remote_code" not in {keyword.arg for keyword in call.keywords}
    ]


def test_nobody_is_asked_whether_code_may_run():
    for room in ("data", "checkpoints", "training", "scripts"):
        for path in (Path(__file__).parents[2] / room).rglob("*.py"):
            assert asks_at_a_terminal(path.read_text(encoding="utf-8")) == [], path
    assert asks_at_a_terminal("AutoProcessor.from_pretrained(path)") == ["AutoProcessor.from_pretrained(path)"]


@pytest.mark.parametrize(
    "file, change, message",
    [
        ("config.json", {"model_type": []}, r"model_type: got \[\], expected a text"),
        ("config.json", {"dtype": "x"}, r"not a whole sparse checkpoint \(.*no attribute 'x'"),
        ("config.json", {"dtype": []}, r"dtype: got \[\], expected a text"),
        ("config.json", {"text_config": {"model_type": -1}}, r"text_config.model_type: got -1, expected a text"),
        ("config.json", {"text_config": {"num_hidden_layers": 10**9}},
         r"text_config.num_hidden_layers: got 1000000000, allowed: integers from 1 to 1,000"),
        ("processor_config.json", {"image_processor": []}, r"no readable processor and tokenizer"),
    ],
)  # fmt: skip
def test_fields_of_other_types_and_sizes_are_one_error(folder, file, change, message):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load_checkpoint(folder, "auto")


@pytest.mark.parametrize("fields", [{"model_type": {}}, {"vision_config": []}, {"text_config": 3}, {"dtype": []}])
def test_fields_of_a_dense_model_of_other_types_are_one_error(tmp_path, fields):
    save_tiny_dense(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(UserError, match=str(tmp_path)):
        load_checkpoint(tmp_path, "auto")
