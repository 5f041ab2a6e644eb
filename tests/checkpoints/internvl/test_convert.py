"""A published InternVL2 and its conversion compute the same. Nothing is lost on the way, nothing half done is left."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig, InternVLForConditionalGeneration

from checkpoints.build import build_student, load_dense
from checkpoints.internvl.convert import convert_internvl
from checkpoints.internvl.processor import SYSTEM
from data.conversations import check_expansion, encode
from data.sample import Sample
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from tests.checkpoints.internvl.published_internvl import (
    CONTEXT,
    TEXTS,
    TILE,
    TOKENS,
    TOWERS,
    published_logits,
    sentencepiece_ids,
    sentencepiece_model,
    write_published,
    write_weights,
)

LM2, PHI3 = TEXTS
WITHIN, BEYOND = CONTEXT - 24, CONTEXT + 24


@pytest.fixture(scope="module", params=[(text, tower) for text in TEXTS for tower in TOWERS], ids="-".join)
def converted(request, tmp_path_factory):
    """(converted folder, published config, published weights); tests do not write to the folder."""
    folder = tmp_path_factory.mktemp("internvl")
    config, weights = write_published(folder / "published", *request.param, num_files=3)
    convert_internvl(folder / "published", folder / "converted")
    return folder / "converted", config, weights


@pytest.fixture
def published(tmp_path):
    """Writes a published folder and returns it with its config and weights."""

    def write(text=LM2, tower="300M"):
        return tmp_path / "published", *write_published(tmp_path / "published", text, tower)

    return write


def prompt(image_id: int, length: int) -> tuple[list[int], torch.Tensor]:
    """Words, two tiles, words: `length` ids in all; and the tiles."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(3, 250, (length,), generator=generator).tolist()
    ids[5 : 5 + 2 * TOKENS] = [image_id] * (2 * TOKENS)
    return ids, torch.randn(2, 3, TILE, TILE, generator=generator)


def logits(model: torch.nn.Module, ids: list[int], tiles: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), pixel_values=tiles).logits[0]


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def load(folder: Path, **kwargs: str) -> InternVLForConditionalGeneration:
    model, report = InternVLForConditionalGeneration.from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


# ---- what it computes ----


@pytest.mark.parametrize("length", [WITHIN, BEYOND])
def test_the_stock_class_gives_the_published_logits(converted, length):
    folder, config, weights = converted
    model = load(folder)
    ids, tiles = prompt(model.config.image_token_id, length)
    expected = published_logits(config, weights, ids, model.config.image_token_id, tiles)
    assert relative_difference(logits(model, ids, tiles), expected) <= 1e-5


def test_rope_is_scaled_only_beyond_the_context(converted):
    """Else the longer prompt above would prove no more than the shorter."""
    folder, config, weights = converted
    model = load(folder)
    image_id = model.config.image_token_id
    scaling = config["llm_config"]["rope_scaling"]
    other = config | {"llm_config": config["llm_config"] | {"rope_scaling": _other_scaling(scaling)}}
    for length, differs in ((WITHIN, False), (BEYOND, True)):
        ids, tiles = prompt(image_id, length)
        difference = relative_difference(
            published_logits(other, weights, ids, image_id, tiles), logits(model, ids, tiles)
        )
        assert (difference > 1e-3) == differs


def _other_scaling(scaling: dict) -> dict:
    """Another one for long prompts."""
    return scaling | ({"factor": 8.0} if "factor" in scaling else {"long_factor": [4.0, 4.0, 4.0, 4.0]})


def test_swapped_keys_and_values_give_other_logits(published, tmp_path):
    folder, config, weights = published(LM2)
    name, width = "language_model.model.layers.0.attention.wqkv.weight", 32
    blocks = weights[name].reshape(2, 4, 8, width)
    write_weights(folder, weights | {name: blocks[:, [0, 1, 3, 2]].reshape(-1, width).contiguous()})
    convert_internvl(folder, tmp_path / "converted")
    model = load(tmp_path / "converted")
    ids, tiles = prompt(model.config.image_token_id, WITHIN)
    expected = published_logits(config, weights, ids, model.config.image_token_id, tiles)
    assert relative_difference(logits(model, ids, tiles), expected) > 1e-2


def test_the_sparse_class_takes_it_under_the_dense_plan(converted):
    folder, _, _ = converted
    dense, _ = load_dense(folder, "auto")
    ids, tiles = prompt(dense.config.image_token_id, BEYOND)
    text = torch.tensor(ids) != dense.config.image_token_id  # it has no logits elsewhere
    expected = logits(dense, ids, tiles)[text]
    student = build_student(dense, VisualPlan.dense(dense.config.text_config.num_hidden_layers))
    assert relative_difference(logits(student, ids, tiles)[text], expected) <= 1e-5


# ---- every tensor ----


def test_the_way_back_gives_every_tensor_bit_for_bit(converted):
    folder, _, weights = converted
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == 3
    here = {name: tensor for file in files for name, tensor in load_file(file).items()}
    back = {}
    for name in weights:
        parts = [here.pop(part) for part in names_here(name)]
        if name.endswith("wqkv.weight"):
            q, k, v = (part.unflatten(0, (2, -1)) for part in parts)  # 2 key/value heads
            back[name] = torch.cat([q, k, v], dim=1).flatten(0, 1)
        else:
            back[name] = torch.cat(parts)
    assert not here, "left over"
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    assert all(back[name].dtype == weights[name].dtype for name in weights)


def names_here(name: str) -> list[str]:
    """By hand, name by name, for the test alone."""
    if name.startswith("mlp1."):
        _, place, kind = name.split(".")
        return [f"model.multi_modal_projector.{['layer_norm', 'linear_1', '', 'linear_2'][int(place)]}.{kind}"]
    for old, new in (
        ("vision_model.encoder.layers", "model.vision_tower.encoder.layer"),
        ("vision_model.embeddings.class_embedding", "model.vision_tower.embeddings.cls_token"),
        ("vision_model.embeddings.patch_embedding", "model.vision_tower.embeddings.patch_embeddings.projection"),
        ("vision_model.embeddings.position_embedding", "model.vision_tower.embeddings.position_embeddings"),
        ("language_model.model.", "model.language_model."),
        ("language_model.output", "lm_head"),
        ("language_model.lm_head", "lm_head"),
        ("tok_embeddings", "embed_tokens"),
        (".ls1", ".lambda_1"),
        (".ls2", ".lambda_2"),
        (".norm1", ".layernorm_before"),
        (".norm2", ".layernorm_after"),
        (".attn.proj", ".attention.projection_layer"),
        (".attn.", ".attention."),
        ("attention.wo", "self_attn.o_proj"),
        ("attention.wqkv", "self_attn.qkv"),
        ("feed_forward.w1", "mlp.gate_proj"),
        ("feed_forward.w2", "mlp.down_proj"),
        ("feed_forward.w3", "mlp.up_proj"),
        ("attention_norm", "input_layernorm"),
        ("ffn_norm", "post_attention_layernorm"),
    ):
        name = name.replace(old, new)
    return [name.replace(".qkv.", f".{part}_proj.") for part in "qkv"] if ".qkv." in name else [name]


def test_the_dtype_stays(published, tmp_path):
    folder, config, weights = published()
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}))
    write_weights(folder, {name: tensor.bfloat16() for name, tensor in weights.items()})
    convert_internvl(folder, tmp_path / "converted")
    assert {tensor.dtype for tensor in load_file(tmp_path / "converted" / "model.safetensors").values()} == {
        torch.bfloat16
    }
    assert load(tmp_path / "converted", dtype="auto").dtype == torch.bfloat16


# ---- tokenizer and processor ----


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_those_of_the_published_model(published, tmp_path, text):
    folder, config, _ = published(text)
    convert_internvl(folder, tmp_path / "converted")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "converted")
    added = json.loads((folder / "added_tokens.json").read_text())
    assert len(tokenizer) == config["llm_config"]["vocab_size"]
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in added} == added
    model = type(sentencepiece_model([], False))()
    model.ParseFromString((folder / "tokenizer.model").read_bytes())
    for words in (
        "hello world",
        " hello  world",
        "héllo\nwörld",
        "low the world",
        "書hello",
        "[UNUSED_TOKEN_0",
        "hhelloo",
    ):
        if words.startswith(" ") and text == PHI3:
            continue  # transformers' own fast Llama tokenizer puts no second space there
        assert tokenizer(words).input_ids == [1, *sentencepiece_ids(model, words)]
        assert tokenizer.decode(tokenizer(words).input_ids, skip_special_tokens=True) == words
    end = "<|im_end|>" if text == LM2 else "<|end|>"
    assert tokenizer(f"<img><IMG_CONTEXT></img>{end}").input_ids[1:] == [
        added[token] for token in ("<img>", "<IMG_CONTEXT>", "</img>", end)
    ]
    assert tokenizer(f"{end}hello").input_ids[-1] == tokenizer.convert_tokens_to_ids("hello"), (
        "no space after an added token"
    )
    generation = GenerationConfig.from_pretrained(tmp_path / "converted")
    assert generation.eos_token_id == tokenizer.eos_token_id == added[end]
    image_token_id = json.loads((tmp_path / "converted" / "config.json").read_text())["image_token_id"]
    assert image_token_id == tokenizer.context_image_token_id == added["<IMG_CONTEXT>"]


def test_a_tokenizer_json_is_used_where_there_is_one(published, tmp_path):
    folder, _, _ = published()
    convert_internvl(folder, tmp_path / "first")
    (folder / "tokenizer.json").write_bytes((tmp_path / "first" / "tokenizer.json").read_bytes())
    (folder / "tokenizer.model").unlink()
    convert_internvl(folder, tmp_path / "second")
    assert (tmp_path / "second" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    "text, expected",
    [
        (
            LM2,
            f"<|im_start|>system\n{SYSTEM}<|im_end|><|im_start|>user\n<IMG_CONTEXT>\nhello<|im_end|>"
            "<|im_start|>assistant\nworld<|im_end|><|im_start|>user\nwho<|im_end|><|im_start|>assistant\n",
        ),
        (
            PHI3,
            f"<|system|>\n{SYSTEM}<|end|><|user|>\n<IMG_CONTEXT>\nhello<|end|>"
            "<|assistant|>\nworld<|end|><|user|>\nwho<|end|><|assistant|>\n",
        ),
    ],
)
def test_a_conversation_is_written_as_the_model_was_trained(published, tmp_path, text, expected):
    convert_internvl(published(text)[0], tmp_path / "converted")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "converted")
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hello"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "world"}]},
        {"role": "user", "content": "who"},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == expected
    own = [{"role": "system", "content": "low"}, *messages]
    assert tokenizer.apply_chat_template(own, tokenize=False, add_generation_prompt=True) == expected.replace(
        SYSTEM, "low"
    )


def test_pictures_are_cut_as_published(converted):
    folder, _, _ = converted
    values = json.loads((folder / "processor_config.json").read_text())
    assert values["processor_class"] == "InternVLProcessor" and values["image_seq_length"] == TOKENS
    picture = values["image_processor"]
    assert picture["size"] == {"height": TILE, "width": TILE}
    assert (picture["crop_to_patches"], picture["min_patches"], picture["max_patches"]) == (True, 1, 12)
    assert (picture["image_mean"], picture["image_std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_a_sample_becomes_tokens_as_the_processor_makes_them(converted, tmp_path):
    model, processor = load_dense(converted[0], "auto")
    Image.new("RGB", (2 * TILE, TILE), "red").save(tmp_path / "wide.png")  # two tiles and the thumbnail
    sample = Sample("wide", (tmp_path / "wide.png",), (("<image>\nhello", "world"), ("low", "the")))
    check_expansion(sample, [(TILE, 2 * TILE)], processor)
    encoded = encode(sample, processor, max_length=1000)
    ids, answers = encoded["input_ids"], encoded["input_ids"][encoded["labels"] != -100]
    assert (ids == model.config.image_token_id).sum() == 3 * TOKENS and len(encoded["pixel_values"]) == 3
    end = processor.tokenizer.eos_token
    assert processor.decode(answers) == f"world{end}the{end}"


# ---- what is refused ----


def test_a_tensor_too_many_too_few_or_of_another_shape_is_refused_by_name(published, tmp_path):
    folder, _, weights = published()
    name = "vision_model.encoder.layers.1.attn.qkv.bias"
    for changed, complaint in (
        (weights | {"vision_model.final_norm.weight": torch.ones(3)}, "vision_model.final_norm.weight: left over"),
        ({key: weights[key] for key in weights if key != name}, f"{name}: missing"),
        (weights | {name: torch.ones(47)}, rf"{name}: got F32 \(47,\), expected a float of shape \(48,\)"),
        (weights | {name: torch.ones(48, dtype=torch.int8)}, rf"{name}: got I8 \(48,\), expected a float"),
    ):
        write_weights(folder, changed)
        refuse(folder, tmp_path, complaint)
    write_weights(folder, weights)
    convert_internvl(folder, tmp_path / "converted")


def test_weights_that_are_no_whole_safetensors_are_refused(published, tmp_path):
    folder, _, weights = published()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refuse(folder, tmp_path, "no readable safetensors weights, the only kind read here .no model.safetensors")
    (folder / "model.safetensors").write_bytes(b"not a header")
    refuse(folder, tmp_path, "model.safetensors: not a safetensors file")
    write_weights(folder, weights, num_files=2)
    (folder / "model-00001-of-00002.safetensors").unlink()
    refuse(folder, tmp_path, "no model-00001-of-00002.safetensors")
    for weight_map in ({"a": "../published/model.safetensors"}, {"a": 1}, None):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        refuse(folder, tmp_path, "weight_map: (.*allowed: names of files|expected an object)")


def test_a_tensor_in_two_files_is_refused(published, tmp_path):
    folder, _, weights = published()
    write_weights(folder, weights, num_files=2)
    second = folder / "model-00002-of-00002.safetensors"
    second.write_bytes((folder / "model-00001-of-00002.safetensors").read_bytes())
    refuse(folder, tmp_path, "stands in another file too")


@pytest.mark.parametrize(
    "part, change, complaint",
    [
        ("", {"ps_version": "v1"}, "ps_version: got 'v1', allowed: 'v2'"),
        ("", {"select_layer": -2}, "select_layer: got -2, allowed: -1"),
        ("", {"template": "vicuna"}, "template: got 'vicuna', allowed: 'internlm2-chat', 'phi3-chat'"),
        ("", {"use_thumbnail": False}, "use_thumbnail: got False, allowed: True"),
        ("", {"force_image_size": 32}, "vision_config.image_size: got 16, allowed: 32"),
        ("", {"downsample_ratio": "half"}, "downsample_ratio"),
        ("", {"torch_dtype": "float8"}, "torch_dtype: got 'float8'"),
        ("", {"llm_config": None}, "llm_config: got None, expected an object"),
        ("llm_config", {"bias": True}, "llm_config.bias: got True, allowed: False"),
        (
            "llm_config",
            {"architectures": ["Qwen2ForCausalLM"]},
            "llm_config.architectures: got 'Qwen2ForCausalLM', allowed: ",
        ),
        ("llm_config", {"tie_word_embeddings": True}, "llm_config.tie_word_embeddings: got True"),
        (
            "llm_config",
            {"rope_scaling": {"type": "yarn"}},
            "llm_config.rope_scaling.type: got 'yarn', allowed: 'dynamic'",
        ),
        ("llm_config", {"rope_scaling": {"type": "dynamic"}}, "llm_config.rope_scaling.factor: missing"),
        ("llm_config", {"vocab_size": 5}, r"the tokenizer has \d+ tokens, the vocabulary 5"),
        ("llm_config", {"hidden_size": "32"}, "hidden_size"),
        ("vision_config", {"norm_type": "none"}, "vision_config.norm_type: got 'none'"),
        (
            "vision_config",
            {"qk_normalization": True, "layer_norm_eps": 1e-5},
            "layer_norm_eps: got 1e-05, allowed: 1e-06",
        ),
        ("vision_config", {"qkv_bias": False}, "attn.qkv.bias: left over"),
        ("vision_config", {"num_attention_heads": 3}, "config.json: transformers cannot build this model .*embed_dim"),
        ("llm_config", {"hidden_act": "nope"}, "config.json: transformers cannot build this model .*nope"),
    ],
)
def test_a_model_that_transformers_would_compute_otherwise_is_refused(published, tmp_path, part, change, complaint):
    folder, config, _ = published()
    config = config | (change if not part else {part: config[part] | change})
    (folder / "config.json").write_text(json.dumps(config))
    refuse(folder, tmp_path, complaint)


def test_a_tokenizer_that_lacks_a_token_or_moves_one_is_refused(published, tmp_path):
    folder, _, _ = published()
    added = json.loads((folder / "added_tokens.json").read_text())
    for changed, complaint in (
        ({token: index for token, index in added.items() if token != "<quad>"}, "'</quad>': got id"),
        (
            {token: index for token, index in added.items() if "quad" not in token},
            "the tokenizer has no token '<quad>'",
        ),
        (added | {"<IMG_CONTEXT>": 7777}, "'<IMG_CONTEXT>': got id"),
        (added | {"<IMG_CONTEXT>": "?"}, "its added tokens are not readable"),
    ):
        (folder / "added_tokens.json").write_text(json.dumps(changed))
        refuse(folder, tmp_path, complaint)
    (folder / "added_tokens.json").write_text(json.dumps(added))
    (folder / "tokenizer.model").write_bytes(b"\xff")
    refuse(folder, tmp_path, "not a SentencePiece model")
    (folder / "tokenizer.model").unlink()
    refuse(folder, tmp_path, "neither tokenizer.json nor tokenizer.model")


def test_a_tokenizer_that_rewrites_its_text_is_refused(published, tmp_path):
    folder, _, _ = published()
    model = sentencepiece_model(["a"], dummy_prefix=False)
    model.normalizer_spec.remove_extra_whitespaces = True
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    refuse(folder, tmp_path, "rewrites its text first")
    model.trainer_spec.model_type = 1
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    refuse(folder, tmp_path, "allowed: byte-pair encoding")


def refuse(folder: Path, tmp_path: Path, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        convert_internvl(folder, tmp_path / "converted")
    assert [path.name for path in tmp_path.iterdir()] == ["published"], "nothing is left"


# ---- whole or absent ----


def test_a_failure_while_writing_leaves_nothing(published, tmp_path, monkeypatch):
    folder, _, _ = published()

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("checkpoints.internvl.convert.save_file", full)
    with pytest.raises(OSError, match="no space"):
        convert_internvl(folder, tmp_path / "converted")
    assert [path.name for path in tmp_path.iterdir()] == ["published"]


def test_what_is_there_stays(published, tmp_path):
    folder, _, _ = published()
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("years of work")
    for output in (full, full / "thesis.txt", folder):
        with pytest.raises(UserError, match="is there and not empty"):
            convert_internvl(folder, output)
    assert [path.name for path in full.iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    convert_internvl(folder, tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").is_file()
