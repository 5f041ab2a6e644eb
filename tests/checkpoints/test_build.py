import copy
import json

import pytest
import torch
from transformers import GPT2Config, LlavaConfig, LlavaForConditionalGeneration

from checkpoints.build import build_student, dense_config, dense_on_meta, load_dense
from modeling.layer_plan import LayerPlan
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from tests.checkpoints.tiny_dense import INTERMEDIATE_SIZE, NUM_LAYERS, save_tiny_dense, tiny_batch, tiny_dense

LISTS = VisualPlan(
    layers=(
        LayerPlan(heads=(1,), ffn=(63, 5, 3)),
        LayerPlan(heads=1, ffn=7),
        LayerPlan(heads=(0, 1), ffn=tuple(range(40, 64))),
    )
)
INTEGERS = VisualPlan(layers=(LayerPlan(heads=1, ffn=3), LayerPlan(heads=1, ffn=7), LayerPlan(heads=2, ffn=24)))


def logits(model, batch):
    """Logits of text rows [rows, vocab]; the sparse model computes none at pictures and padding."""
    arguments = {key: value.to(model.dtype) if value.is_floating_point() else value for key, value in batch.items()}
    text = batch["attention_mask"].bool() & (batch["input_ids"] != model.config.image_token_id)
    with torch.no_grad():
        return model(**arguments).logits[text]


def relative_difference(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


# ---- permutation ----


def permuted(dense, plan: VisualPlan) -> VisualPlan:
    """Permutes the dense model, whose tensors its student shares; the student's plan."""
    return build_student(dense, plan).visual_plan


@pytest.mark.parametrize("num_units", [2, 4])  # grouped queries, and a head per unit
def test_permutation_leaves_the_dense_function_unchanged(num_units):
    dense, processor = tiny_dense(num_units)
    dense.double()
    batch, before = tiny_batch(processor), copy.deepcopy(dense)
    plan = VisualPlan(layers=tuple(LayerPlan(heads=(num_units - 1,), ffn=(60, 2)) for _ in range(NUM_LAYERS)))
    assert permuted(dense, plan) == VisualPlan(layers=(LayerPlan(heads=1, ffn=2),) * NUM_LAYERS)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        moved, original = (getattr(m.model.language_model.layers[0].self_attn, name) for m in (dense, before))
        assert not torch.equal(moved.weight, original.weight)
    assert relative_difference(logits(dense, batch), logits(before, batch)) < 1e-13


@pytest.mark.parametrize(
    "forgotten",
    [f"self_attn.{n}_proj.{kind}" for n in "qkv" for kind in ("weight", "bias")]
    + ["self_attn.o_proj.weight", "mlp.down_proj.weight"]
    + [f"mlp.{n}_proj.{kind}" for n in ("gate", "up") for kind in ("weight", "bias")],
)
def test_leaving_out_one_permutation_changes_the_function(forgotten):
    dense, processor = tiny_dense()
    dense.double()
    batch, before = tiny_batch(processor), copy.deepcopy(dense)
    permuted(dense, LISTS)
    with torch.no_grad():
        name = f"model.language_model.layers.0.{forgotten}"
        dense.get_parameter(name).copy_(before.get_parameter(name))
    assert relative_difference(logits(dense, batch), logits(before, batch)) > 1e-6


def test_served_units_come_first_in_their_order():
    dense, _ = tiny_dense()
    before = copy.deepcopy(dense).model.language_model.layers[0]
    assert permuted(dense, LISTS) == INTEGERS
    after = dense.model.language_model.layers[0]
    neurons = [3, 5, 63, 0, 1, 2, 4, *range(6, 63)]
    assert torch.equal(after.mlp.gate_proj.weight, before.mlp.gate_proj.weight[neurons])
    assert torch.equal(after.mlp.up_proj.bias, before.mlp.up_proj.bias[neurons])
    assert torch.equal(after.mlp.down_proj.weight, before.mlp.down_proj.weight[:, neurons])
    assert torch.equal(after.mlp.down_proj.bias, before.mlp.down_proj.bias)
    # Unit 1 is query heads 2 and 3, of 8 rows each, and one key/value head of 8 rows.
    queries, keys = [*range(16, 32), *range(16)], [*range(8, 16), *range(8)]
    assert torch.equal(after.self_attn.q_proj.weight, before.self_attn.q_proj.weight[queries])
    assert torch.equal(after.self_attn.k_proj.weight, before.self_attn.k_proj.weight[keys])
    assert torch.equal(after.self_attn.v_proj.bias, before.self_attn.v_proj.bias[keys])
    assert torch.equal(after.self_attn.o_proj.weight, before.self_attn.o_proj.weight[:, queries])


def test_an_integer_plan_moves_nothing():
    dense, _ = tiny_dense()
    before = copy.deepcopy(dense.state_dict())
    assert permuted(dense, INTEGERS) == INTEGERS
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())


def test_permutation_keeps_half_precision_and_place():
    dense, _ = tiny_dense()
    dense.bfloat16()
    weight = dense.model.language_model.layers[0].self_attn.q_proj.weight
    address = weight.data_ptr()
    permuted(dense, LISTS)
    assert weight.dtype == torch.bfloat16 and weight.data_ptr() == address


# ---- student ----


@pytest.mark.parametrize("tied", [False, True])
def test_student_under_the_dense_plan_is_the_dense_model(tied):
    dense, processor = tiny_dense(tied=tied)
    batch = tiny_batch(processor)
    expected = logits(dense, batch)
    address = dense.lm_head.weight.data_ptr()
    student = build_student(dense, VisualPlan.dense(NUM_LAYERS))
    assert student.lm_head.weight.data_ptr() == address, "weights are moved, not copied"
    assert (student.lm_head.weight is student.get_input_embeddings().weight) == tied
    assert not student.training
    assert relative_difference(logits(student, batch), expected) < 2e-6


@pytest.mark.parametrize("num_units", [2, 4])
def test_lists_on_dense_weights_equal_integers_on_permuted_weights(num_units):
    dense, processor = tiny_dense(num_units)
    batch = tiny_batch(processor)
    with_lists = build_student(copy.deepcopy(dense), VisualPlan.dense(NUM_LAYERS))
    permuted = build_student(copy.deepcopy(dense), LISTS)
    unpermuted = build_student(copy.deepcopy(dense), INTEGERS)
    assert permuted.visual_plan == INTEGERS and VisualPlan.from_dict(permuted.config.visual_plan) == INTEGERS
    with with_lists.use_plan(LISTS):
        expected = logits(with_lists, batch)
    assert relative_difference(logits(permuted, batch), expected) < 5e-6
    assert relative_difference(logits(unpermuted, batch), expected) > 1e-3


def test_a_plan_that_does_not_fit_is_refused_and_moves_nothing():
    dense, _ = tiny_dense()
    before = copy.deepcopy(dense.state_dict())
    with pytest.raises(UserError, match="got 2 layers, the model has 3"):
        build_student(dense, VisualPlan(layers=LISTS.layers[:2]))
    with pytest.raises(UserError, match="ffn: got 65, the model has 64"):
        build_student(dense, VisualPlan.dense(NUM_LAYERS).replace(1, ffn=INTERMEDIATE_SIZE + 1))
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())


# ---- loading ----


@pytest.fixture
def dense_folder(tmp_path):
    return save_tiny_dense(tmp_path / "dense")


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (config[section] if section else config)[name] = value
    (folder / "config.json").write_text(json.dumps(config))


def test_load_dense(dense_folder):
    model, processor = load_dense(dense_folder, "float32")
    assert type(model) is LlavaForConditionalGeneration
    batch = tiny_batch(processor)
    assert torch.equal(logits(model, batch), logits(tiny_dense()[0], batch))
    assert load_dense(dense_folder, torch.bfloat16)[0].dtype == torch.bfloat16


def test_missing_models_are_refused(tmp_path):
    with pytest.raises(UserError, match="without config.json"):
        load_dense(tmp_path, "float32")
    with pytest.raises(UserError, match="no such model in the folder"):
        load_dense(tmp_path / "nowhere", "float32")


@pytest.mark.parametrize(
    "changes, got",
    [
        ({"model_type": "llava_onevision"}, "'llava_onevision' model"),
        ({"model_type": "sparse_llava"}, "'sparse_llava' model"),
        ({"text_config__model_type": "gemma"}, "'llava' model with a 'gemma' text model"),
    ],
)
def test_other_models_are_refused_by_their_config(dense_folder, changes, got):
    edit_config(dense_folder, **changes)
    with pytest.raises(
        UserError, match=f"{got}.*supported: .*'llava' with a 'llama' or 'mistral' or 'qwen2' text model"
    ):
        load_dense(dense_folder, "float32")


def test_a_text_model_is_refused(tmp_path):
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="got a 'gpt2' model"):
        dense_config(tmp_path)


def test_pickled_weights_are_refused(dense_folder):
    model, _ = tiny_dense()
    (dense_folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), dense_folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="no readable safetensors weights"):
        load_dense(dense_folder, "float32")


def test_truncated_weights_are_refused(dense_folder):
    weights = dense_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match="no readable safetensors weights"):
        load_dense(dense_folder, "float32")


def test_weights_that_do_not_cover_the_config_are_refused(dense_folder):
    edit_config(dense_folder, text_config__num_hidden_layers=4)
    with pytest.raises(UserError, match="weights are missing or of another shape.*layers.3"):
        load_dense(dense_folder, "float32")


def test_weights_of_another_shape_are_refused(dense_folder):
    edit_config(dense_folder, text_config__intermediate_size=32)
    with pytest.raises(UserError, match="weights are missing or of another shape"):
        load_dense(dense_folder, "float32")


def test_a_model_without_processor_is_refused(tmp_path):
    tiny_dense()[0].save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no readable processor"):
        load_dense(tmp_path, "float32")


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(dense_folder):
    _, processor = tiny_dense()
    processor.tokenizer.add_tokens(["one_too_many"])
    processor.save_pretrained(dense_folder)
    with pytest.raises(UserError, match="the tokenizer has .* tokens, the model's vocabulary only"):
        load_dense(dense_folder, "float32")


def test_another_picture_token_is_refused(dense_folder):
    edit_config(dense_folder, image_token_index=3)
    with pytest.raises(UserError, match="the processor marks pictures with token 4, the model with 3"):
        load_dense(dense_folder, "float32")


def test_dense_on_meta_needs_only_a_config(tmp_path):
    model, _ = tiny_dense()
    file = tmp_path / "shape.json"
    file.write_text(json.dumps(model.config.to_dict()))
    on_meta = dense_on_meta(file)
    assert {parameter.device.type for parameter in on_meta.parameters()} == {"meta"}
    assert {name: value.shape for name, value in on_meta.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    assert isinstance(on_meta.config, LlavaConfig)


# ---- what a library cannot read ----


@pytest.mark.parametrize("content", ["{", "\udcff", "[1]", "3"])
def test_a_config_that_is_no_json_object_is_refused(dense_folder, content):
    (dense_folder / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(
        UserError, match=r"config.json: (not a JSON file|not a text in UTF-8|got (list|int), expected a JSON object)"
    ):
        load_dense(dense_folder, "float32")


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"text_config": {"model_type": "nope"}}, "nope"),
        ({"vision_config": {"model_type": "nope"}}, "nope"),
        ({"text_config__mlp_bias": 3}, "mlp_bias"),
        ({"text_config__num_attention_heads": 5}, "attention heads"),
        ({"text_config__rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"dtype": "floaty"}, "floaty"),
    ],
)
def test_a_config_that_transformers_refuses_is_refused(dense_folder, changes, complaint):
    edit_config(dense_folder, **changes)
    with pytest.raises(UserError, match=f"(?s)dense: not a config that transformers accepts .*{complaint}"):
        dense_config(dense_folder)


def test_a_model_that_transformers_cannot_build_is_refused(dense_folder):
    edit_config(dense_folder, text_config__hidden_act="nope")
    with pytest.raises(UserError, match="dense: transformers cannot build this model .*nope"):
        load_dense(dense_folder, "float32")
    with pytest.raises(UserError, match="dense: transformers cannot build this model .*nope"):
        dense_on_meta(dense_folder)


def test_quantized_weights_without_their_library_are_refused(dense_folder):
    edit_config(dense_folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(UserError, match="dense: transformers cannot build this model .*bitsandbytes"):
        load_dense(dense_folder, "float32")


@pytest.mark.parametrize("name", ["processor_config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00"])
def test_broken_processor_files_are_refused(dense_folder, name, content):
    (dense_folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"dense/{name}: not a (JSON file|text in UTF-8)"):
        load_dense(dense_folder, "float32")


@pytest.mark.parametrize(
    "name, content",
    [
        ("tokenizer.json", None),
        ("tokenizer.json", {}),
        ("tokenizer_config.json", {"eos_token": 3}),
        ("processor_config.json", {"image_processor": {"image_processor_type": "Nope"}}),
        ("processor_config.json", {"image_processor": {"image_processor_type": "CLIPImageProcessor", "size": "x"}}),
        ("processor_config.json", {"processor_class": "Nope"}),
    ],
)
def test_a_processor_that_transformers_refuses_is_refused(dense_folder, name, content):
    file = dense_folder / name
    if content is None:
        file.unlink()
    else:
        kept = {} if name == "tokenizer.json" else json.loads(file.read_text())
        file.write_text(json.dumps(kept | content))
    with pytest.raises(UserError, match="dense: (.*: )?no readable processor and tokenizer"):
        load_dense(dense_folder, "float32")


# ---- generation config ----


def test_sampling_settings_beside_greedy_decoding_do_not_stop_an_export(tmp_path):
    """The checkpoints of Vicuna's time have them, and transformers refuses to save them."""
    save_tiny_dense(tmp_path / "dense")
    generation = {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "max_length": 77}
    (tmp_path / "dense" / "generation_config.json").write_text(json.dumps(generation))
    dense, _ = load_dense(tmp_path / "dense", torch.float32)
    student = build_student(dense, VisualPlan.dense(NUM_LAYERS))
    student.save_pretrained(tmp_path / "student")
    saved = json.loads((tmp_path / "student" / "generation_config.json").read_text())
    assert saved["max_length"] == 77 and "temperature" not in saved


def test_sampling_settings_stay_where_sampling_reads_them(tmp_path):
    save_tiny_dense(tmp_path / "dense")
    (tmp_path / "dense" / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.9}))
    assert load_dense(tmp_path / "dense", torch.float32)[0].generation_config.temperature == 0.9


def test_a_generation_config_that_cannot_be_saved_is_refused_when_it_is_loaded(tmp_path):
    save_tiny_dense(tmp_path / "dense")
    (tmp_path / "dense" / "generation_config.json").write_text(json.dumps({"length_penalty": 2.0}))
    with pytest.raises(UserError, match="(?s)generation_config.json: .*length_penalty"):
        load_dense(tmp_path / "dense", torch.float32)


def test_an_adapter_left_in_the_models_folder_is_refused(tmp_path):
    save_tiny_dense(tmp_path / "dense")
    (tmp_path / "dense" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UserError, match="holds adapter_config.json.*merge the adapter"):
        load_dense(tmp_path / "dense", torch.float32)
