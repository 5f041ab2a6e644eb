import ast
import json
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaProcessor,
)

from checkpoints import export
from checkpoints.build import build_student
from checkpoints.export import (
    check_output,
    export_checkpoint,
    fresh_process_logits,
    off_accelerator,
    stop_at_end_token,
)
from modeling.layer_plan import LayerPlan
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from tests.checkpoints.tiny_dense import tiny_batch, tiny_dense

MODELING = Path(export.__file__).parent.parent / "modeling"
PLAN = VisualPlan(layers=(LayerPlan(heads=(1,), ffn=(5, 60), radius=1), LayerPlan(ffn=0), LayerPlan(tokens=0.5)))
CPU = torch.device("cpu")


def student_with_probe(dtype=torch.float32):
    dense, processor = tiny_dense()
    return build_student(dense.to(dtype), PLAN), processor, tiny_batch(processor)


def relative_difference(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder, model, probe) of one export; tests do not write to the folder."""
    folder = tmp_path_factory.mktemp("export") / "checkpoint"
    model, processor, probe = student_with_probe()
    picture = folder.parent / "plan.png"
    picture.write_bytes(b"a picture")
    export_checkpoint(model, processor, folder, card="# tiny\n", probe=probe, picture=picture)
    return folder, model, probe


class OnAccelerator(torch.nn.Linear):
    """A module whose place is written down. `meta` stands for an accelerator."""

    def __init__(self):
        super().__init__(2, 2, device="meta")
        self.places = []

    def to(self, device):
        self.places.append(str(device))


def test_the_model_leaves_the_accelerator_while_the_fresh_process_runs(monkeypatch):
    emptied = []
    module = SimpleNamespace(empty_cache=lambda: emptied.append(list(model.places)))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    model = OnAccelerator()
    with off_accelerator(model):
        assert model.places == ["cpu"] and emptied == [["cpu"]], "emptied after the model has left"
    assert model.places == ["cpu", "meta"]


def modelling_files(start="modeling_sparse_llava.py"):
    """The file and, recursively, the siblings it imports."""
    found, todo = set(), {start}
    while todo:
        name = todo.pop()
        found.add(name)
        for node in ast.walk(ast.parse((MODELING / name).read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                todo |= {f"{node.module}.py"} - found
    return found


# ---- what is written ----


def test_files_are_readable_by_others(exported):
    assert {stat.S_IMODE(path.stat().st_mode) for path in exported[0].iterdir()} == {0o644}


def test_weights_are_cut_into_shards(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "SHARD_SIZE", "100KB")
    export.write_model(exported[1], tmp_path)
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(shards) > 1 and "model.safetensors" not in shards
    whole = load_file(exported[0] / "model.safetensors")
    parts = {name: weight for shard in shards for name, weight in load_file(tmp_path / shard).items()}
    assert parts.keys() == whole.keys() and all(torch.equal(parts[name], whole[name]) for name in whole)


def test_files_are_exactly_these(exported):
    folder, _, _ = exported
    code = modelling_files()
    assert {"configuration_sparse_llava.py", "sparse_decoder.py", "visual_plan.py"} < code
    assert {path.name for path in folder.iterdir()} == code | {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "plan.png",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []
    for name in code:
        assert (folder / name).read_bytes() == (MODELING / name).read_bytes()


def test_config_names_its_own_type_and_holds_the_integer_plan(exported):
    folder, model, _ = exported
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "sparse_llava"
    assert config["architectures"] == ["SparseLlavaForConditionalGeneration"]
    model_classes = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM", "AutoModelForPreTraining")
    assert config["auto_map"] == {
        "AutoConfig": "configuration_sparse_llava.SparseLlavaConfig",
        **dict.fromkeys(model_classes, "modeling_sparse_llava.SparseLlavaForConditionalGeneration"),
    }
    plan = VisualPlan.from_dict(config["visual_plan"])
    assert plan == model.visual_plan
    assert plan.is_integer and (plan.layers[0].heads, plan.layers[0].ffn) == (1, 2)


def test_generation_ends_at_the_end_token_of_training(tmp_path):
    model, processor, probe = student_with_probe()
    assert processor.tokenizer.eos_token_id == 2
    for found, written in ((None, [2]), (9, [9, 2]), ([9, 2], [9, 2]), (2, 2)):
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = found, None
        stop_at_end_token(model, processor)
        assert model.generation_config.eos_token_id == written
    export_checkpoint(model, processor, tmp_path / "out", card="", probe=probe)
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (settings["eos_token_id"], settings["pad_token_id"]) == (2, 0)


def test_prompts_are_padded_on_the_left(exported):
    assert tiny_dense()[1].tokenizer.padding_side == "right"
    assert json.loads((exported[0] / "tokenizer_config.json").read_text())["padding_side"] == "left"
    assert AutoTokenizer.from_pretrained(exported[0]).padding_side == "left"


def test_the_processors_code_is_the_checkpoints_only_for_those_who_trust_it(exported):
    folder, _, _ = exported
    written = json.loads((folder / "processor_config.json").read_text())
    assert written["processor_class"] == "LlavaProcessor"
    assert written["auto_map"] == {"AutoProcessor": "processing_sparse_llava.SparseLlavaProcessor"}
    trusted, stock = (AutoProcessor.from_pretrained(folder, trust_remote_code=trust) for trust in (True, False))
    assert type(stock) is LlavaProcessor
    assert type(trusted).__name__ == "SparseLlavaProcessor"
    assert type(trusted).__module__.startswith("transformers_modules.")
    assert trusted(text="what is this ?", images=[], audios=[]).keys() == {"input_ids", "attention_mask"}


def test_a_list_in_the_plan_is_our_bug(tmp_path):
    model, processor, probe = student_with_probe()
    model.set_visual_plan(PLAN)
    with pytest.raises(AssertionError, match="permute before export"):
        export_checkpoint(model, processor, tmp_path / "out", card="", probe=probe)
    assert list(tmp_path.iterdir()) == []


# ---- who loads it ----


@pytest.mark.slow
def test_half_precision_is_verified_too(tmp_path):
    model, processor, probe = student_with_probe(torch.bfloat16)
    export_checkpoint(model, processor, tmp_path / "out", card="", probe=probe)
    assert load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"].dtype == torch.bfloat16


def test_both_auto_classes_load_the_class_that_generates(exported):
    folder, model, probe = exported
    loaded = [auto.from_pretrained(folder, trust_remote_code=True) for auto in (AutoModel, AutoModelForImageTextToText)]
    assert type(loaded[0]).__name__ == type(loaded[1]).__name__ == "SparseLlavaForConditionalGeneration"
    assert type(loaded[0]).__module__.startswith("transformers_modules."), (
        "the copied files answer, not this repository"
    )
    expected = model.generate(**probe, max_new_tokens=3, do_sample=False)
    assert torch.equal(loaded[0].generate(**probe, max_new_tokens=3, do_sample=False), expected)


def test_second_save_by_the_loaded_class_loads_again(exported, tmp_path):
    folder, model, probe = exported
    AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(folder, trust_remote_code=True).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in folder.iterdir()} - {
        "README.md",
        "plan.png",
    }
    first, second = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path))
    for key in ("model_type", "architectures", "auto_map", "visual_plan"):
        assert first[key] == second[key]
    with torch.no_grad():
        expected = model(**probe).logits
    assert relative_difference(fresh_process_logits(tmp_path, probe, CPU), expected) < 1e-5


@pytest.mark.parametrize("stock", [LlavaForConditionalGeneration, LlavaModel, LlavaConfig])
def test_the_stock_class_refuses_rather_than_run_it_dense(exported, stock):
    folder, _, _ = exported
    with pytest.raises((ValueError, KeyError), match="sparse_llama"):
        stock.from_pretrained(folder)


def test_it_is_the_text_models_type_that_makes_the_stock_class_refuse(exported, tmp_path):
    """Negative control: with a stock text type, transformers warns about the outer type and runs the model dense."""
    folder, _, _ = exported
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["model_type"] = "llama"
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert type(LlavaForConditionalGeneration.from_pretrained(tmp_path)) is LlavaForConditionalGeneration


@pytest.mark.parametrize("trust", [None, False])  # None asks a person, of whom there is none here
def test_code_runs_only_for_those_who_trust_it(exported, trust):
    folder, _, _ = exported
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=trust)


# ---- whole or not at all ----


def swap_two_words(folder):
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][[7, 8]] = weights["lm_head.weight"][[8, 7]]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def forget_the_plan(folder):
    config = json.loads((folder / "config.json").read_text())
    config["visual_plan"] = VisualPlan.dense(len(PLAN)).to_dict()
    (folder / "config.json").write_text(json.dumps(config))


def import_the_repository(folder):
    """What an absolute import in a modelling file does, once no checkout is there to answer it."""
    code = folder / "modeling_sparse_llava.py"
    written = code.read_text()
    assert "from .visual_layout" in written
    code.write_text(written.replace("from .visual_layout", "from modeling.visual_layout"))


@pytest.mark.parametrize(
    "harm, message",
    [
        pytest.param(swap_two_words, "other logits", marks=pytest.mark.slow),
        (forget_the_plan, "other logits"),
        (import_the_repository, "does not load in a fresh process"),
    ],
)
def test_a_checkpoint_that_fails_its_check_leaves_nothing(tmp_path, monkeypatch, harm, message):
    model, processor, probe = student_with_probe()
    write_model = export.write_model

    def write_and_harm(model, folder):
        write_model(model, folder)
        harm(folder)

    monkeypatch.setattr(export, "write_model", write_and_harm)
    with pytest.raises(RuntimeError, match=message):
        export_checkpoint(model, processor, tmp_path / "out", card="", probe=probe)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_keeps_the_checkpoint_that_stood_there(exported, tmp_path, monkeypatch):
    model, processor, probe = student_with_probe()
    old = tmp_path / "out"
    old.mkdir()
    (old / "config.json").write_bytes((exported[0] / "config.json").read_bytes())
    monkeypatch.setattr(export, "fresh_process_logits", lambda folder, probe, device: torch.zeros(1))
    with pytest.raises(RuntimeError, match="logits of shape"):
        export_checkpoint(model, processor, old, card="", probe=probe)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in old.iterdir()] == ["config.json"]


def test_an_older_checkpoint_is_replaced_whole(exported, tmp_path, monkeypatch):
    model, processor, probe = student_with_probe()
    old = tmp_path / "out"
    old.mkdir()
    (old / "config.json").write_bytes((exported[0] / "config.json").read_bytes())
    (old / "left_over.safetensors").write_bytes(b"old")
    (tmp_path / ".out.partial").mkdir()  # of a run that was killed
    with torch.no_grad():
        logits = model(**probe).logits
    monkeypatch.setattr(export, "fresh_process_logits", lambda folder, probe, device: logits)
    export_checkpoint(model, processor, old, card="", probe=probe)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (old / "left_over.safetensors").exists() and (old / "model.safetensors").exists()


def test_what_is_not_ours_is_left_alone(tmp_path):
    model, processor, probe = student_with_probe()
    arguments = {"card": "", "probe": probe}
    folder, file, dense = tmp_path / "folder", tmp_path / "file", tmp_path / "dense"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    file.write_text("")
    tiny_dense()[0].save_pretrained(dense)
    for output in (folder, dense):
        with pytest.raises(UserError, match="not empty and not a sparse checkpoint"):
            export_checkpoint(model, processor, output, **arguments)
    with pytest.raises(UserError, match="is a file"):
        export_checkpoint(model, processor, file, **arguments)
    assert (folder / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_folder_whose_config_cannot_be_read_is_left_alone(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="config.json: "):
        check_output(tmp_path)
