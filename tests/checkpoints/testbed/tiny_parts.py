"""The two files that a base is made of, in small: an ONNX as PyTorch exports a DINOv2, and a GGUF of a Llama."""

from pathlib import Path

import gguf
import onnx
import torch
from onnx import numpy_helper
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM

PATCH, SIDE = 4, 20
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(chr(code) for code in range(33, 127)), "Ġ", "Ċ", "to", "Ġto"]
OLDER_NAMES = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
"""Of published DINOv2s, which an exported graph has as well."""


def tiny_tower(num_blocks: int = 3) -> Dinov2Model:
    """With random weights, of two heads."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=128, num_hidden_layers=num_blocks, num_attention_heads=2, mlp_ratio=2, image_size=SIDE,
        patch_size=PATCH, use_mask_token=False,
    )  # fmt: skip
    tower = Dinov2Model(config).eval()
    for value in tower.parameters():
        value.data.normal_(std=0.2)
    return tower


def published(name: str) -> str:
    """Returns the name that a tower's weight has in files."""
    for new, old in OLDER_NAMES.items():
        name = name.replace(f"attention.{new}.", f"attention.{old}.")
    return name.replace("attention.o_proj.", "attention.output.dense.")


def write_onnx(tower: Dinov2Model, path: Path) -> None:
    """As `torch.onnx.export` writes it: linear weights are transposed, and have numbers for names."""
    stored, nodes = {}, []
    for number, (name, value) in enumerate(tower.state_dict().items()):
        name = published(name)
        if name == "embeddings.position_embeddings":
            stored["onnx::Concat_7"], stored["onnx::Reshape_8"] = value[:, :1], value[:, 1:]
        elif value.ndim == 2:
            stored[f"onnx::MatMul_{number}"] = value.T
            module = "/backbone/" + name.removesuffix(".weight").replace("layer.", "layer#").replace(".", "/")
            node = {"name": module.replace("#", ".") + "/MatMul", "inputs": ["x", f"onnx::MatMul_{number}"]}
            nodes.append(onnx.helper.make_node("MatMul", outputs=[f"y{number}"], **node))
        else:
            stored[f"backbone.{name}"] = value
    stored["decoder.upconv1.weight"] = torch.zeros(2, 2, 4, 4)
    tensors = [numpy_helper.from_array(value.numpy(), name) for name, value in stored.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "main_graph", [], [], tensors)), path)


def tiny_llama() -> LlamaForCausalLM:
    """With random weights, its embeddings tied."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def write_gguf(model: LlamaForCausalLM, path: Path) -> None:
    """In the order of rows that GGUF has for queries and keys, not quantised."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3] * 3 + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["t o", "Ġ to"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.model.state_dict(prefix="model.").items():
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                value = value.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(names.get_name(name, (".weight",)), value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
