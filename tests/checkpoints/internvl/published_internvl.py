"""A tiny InternVL2 in the layout it was published in, and what it computes, written out plainly.

Nothing here is of transformers or of the code under test: names, shapes and the forward are the published model's.
"""

import itertools
import json
import math
from pathlib import Path

import torch
from google.protobuf.message import Message
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers.convert_slow_tokenizer import import_protobuf

TILE, PATCH, TOKENS = 16, 4, 4  # a tile: 4 x 4 patches, 2 x 2 tokens
CONTEXT = 64  # of pre-training; longer prompts scale RoPE
WORDS = ["▁", *"abcdehlortuw", "he", "lo", "▁w", "or", "hel", "▁wor", "hello", "▁world"]
PICTURES = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>"]
TOWERS = {
    "300M": {"norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": True},
    "6B": {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False},
}
TEXTS = {
    "InternLM2ForCausalLM": {
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "bias": False,
    },
    "Phi3ForCausalLM": {
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "original_max_position_embeddings": CONTEXT,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "su", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.0, 2.5, 3.0]},
        "sliding_window": 262144,
        "resid_pdrop": 0.0,
        "attention_dropout": 0.0,
    },
}


def write_published(folder: Path, text: str, tower: str, num_files: int = 1) -> tuple[dict, dict[str, Tensor]]:
    """Writes a whole folder; returns its config and its weights, random in every place, fp32."""
    folder.mkdir(parents=True)
    vocab_size = write_tokenizer(folder, text)
    config = published_config(text, tower, vocab_size)
    weights = random_weights(config)
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder, weights, num_files)
    return config, weights


def write_weights(folder: Path, weights: dict[str, Tensor], num_files: int = 1) -> None:
    for old in folder.glob("model*"):
        old.unlink()
    if num_files == 1:
        save_file(weights, folder / "model.safetensors")
        return
    names = [f"model-{number:05d}-of-{num_files:05d}.safetensors" for number in range(1, num_files + 1)]
    weight_map = {name: names[index % num_files] for index, name in enumerate(weights)}
    for file in names:
        save_file({name: weights[name] for name in weights if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def published_config(text: str, tower: str, vocab_size: int) -> dict:
    return {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": TILE,
        "llm_config": {
            "architectures": [text],
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            "tie_word_embeddings": False,
            **TEXTS[text],
        },
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internlm2-chat" if text == "InternLM2ForCausalLM" else "phi3-chat",
        "torch_dtype": "float32",
        "use_thumbnail": True,
        "vision_config": {
            "model_type": "intern_vit_6b",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_channels": 3,
            "image_size": TILE,
            "patch_size": PATCH,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
            "attention_dropout": 0.0,
            "dropout": 0.0,
            "drop_path_rate": 0.1,
            **TOWERS[tower],
        },
    }


def random_weights(config: dict) -> dict[str, Tensor]:
    tower, llm = config["vision_config"], config["llm_config"]
    dim, inner, width, ffn = (
        tower["hidden_size"],
        tower["intermediate_size"],
        llm["hidden_size"],
        llm["intermediate_size"],
    )
    head = width // llm["num_attention_heads"]
    qkv = (llm["num_attention_heads"] + 2 * llm["num_key_value_heads"]) * head
    shapes = {
        "vision_model.embeddings.class_embedding": (1, 1, dim),
        "vision_model.embeddings.patch_embedding.weight": (dim, 3, PATCH, PATCH),
        "vision_model.embeddings.patch_embedding.bias": (dim,),
        "vision_model.embeddings.position_embedding": (1, (TILE // PATCH) ** 2 + 1, dim),
    }
    for layer in range(tower["num_hidden_layers"]):
        own = {
            "ls1": (dim,),
            "ls2": (dim,),
            "attn.qkv.weight": (3 * dim, dim),
            "norm1.weight": (dim,),
            "norm2.weight": (dim,),
        }
        own |= {"attn.proj.weight": (dim, dim), "attn.proj.bias": (dim,)}
        own |= {"mlp.fc1.weight": (inner, dim), "mlp.fc1.bias": (inner,)}
        own |= {"mlp.fc2.weight": (dim, inner), "mlp.fc2.bias": (dim,)}
        if tower["qkv_bias"]:
            own["attn.qkv.bias"] = (3 * dim,)
        if tower["qk_normalization"]:
            own |= {"attn.q_norm.weight": (dim,), "attn.k_norm.weight": (dim,)}
        if tower["norm_type"] == "layer_norm":
            own |= {"norm1.bias": (dim,), "norm2.bias": (dim,)}
        shapes |= {f"vision_model.encoder.layers.{layer}.{name}": shape for name, shape in own.items()}
    shapes |= {"mlp1.0.weight": (4 * dim,), "mlp1.0.bias": (4 * dim,)}
    shapes |= {"mlp1.1.weight": (width, 4 * dim), "mlp1.1.bias": (width,)}
    shapes |= {"mlp1.3.weight": (width, width), "mlp1.3.bias": (width,)}
    if llm["architectures"] == ["InternLM2ForCausalLM"]:
        ends = {"model.tok_embeddings": llm["vocab_size"], "output": llm["vocab_size"]}
        own = {
            "attention.wqkv": (qkv, width),
            "attention.wo": (width, width),
            "attention_norm": (width,),
            "ffn_norm": (width,),
        }
        own |= {"feed_forward.w1": (ffn, width), "feed_forward.w3": (ffn, width), "feed_forward.w2": (width, ffn)}
    else:
        ends = {"model.embed_tokens": llm["vocab_size"], "lm_head": llm["vocab_size"]}
        own = {"self_attn.qkv_proj": (qkv, width), "self_attn.o_proj": (width, width), "input_layernorm": (width,)}
        own |= {
            "mlp.gate_up_proj": (2 * ffn, width),
            "mlp.down_proj": (width, ffn),
            "post_attention_layernorm": (width,),
        }
    shapes |= {f"language_model.{name}.weight": (rows, width) for name, rows in ends.items()}
    shapes["language_model.model.norm.weight"] = (width,)
    for layer in range(llm["num_hidden_layers"]):
        shapes |= {f"language_model.model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


# ---- what it computes ----


def published_logits(
    config: dict, weights: dict[str, Tensor], input_ids: list[int], image_id: int, tiles: Tensor
) -> Tensor:
    """Logits [S, V] of one prompt; tiles [T, 3, height, width] stand where `image_id` does."""
    llm = config["llm_config"]
    ids = torch.tensor(input_ids)
    lm2 = llm["architectures"] == ["InternLM2ForCausalLM"]
    states = weights[f"language_model.model.{'tok_embeddings' if lm2 else 'embed_tokens'}.weight"][ids]
    states[ids == image_id] = torch.cat([projected(weights, tower_states(config, weights, tile)) for tile in tiles])
    cos, sin = rope(llm, len(ids))
    for layer in range(llm["num_hidden_layers"]):
        own = {
            name.split(".", 4)[4].removesuffix(".weight"): weight
            for name, weight in weights.items()
            if name.startswith(f"language_model.model.layers.{layer}.")
        }
        norms = ("attention_norm", "ffn_norm") if lm2 else ("input_layernorm", "post_attention_layernorm")
        normed = rms(states, own[norms[0]], llm["rms_norm_eps"])
        q, k, v = lm2_heads(llm, own, normed) if lm2 else phi3_heads(llm, own, normed)
        mixed = attention(turn(q, cos, sin), turn(k, cos, sin), v, causal=True)
        states = states + mixed @ own["attention.wo" if lm2 else "self_attn.o_proj"].T
        normed = rms(states, own[norms[1]], llm["rms_norm_eps"])
        if lm2:
            gate, up, down = (own[f"feed_forward.{name}"] for name in ("w1", "w3", "w2"))
        else:
            (gate, up), down = own["mlp.gate_up_proj"].chunk(2), own["mlp.down_proj"]
        states = states + (F.silu(normed @ gate.T) * (normed @ up.T)) @ down.T
    states = rms(states, weights["language_model.model.norm.weight"], llm["rms_norm_eps"])
    return states @ weights[f"language_model.{'output' if lm2 else 'lm_head'}.weight"].T


def lm2_heads(llm: dict, own: dict[str, Tensor], states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, values [heads, S, head_dim]: for each key/value head its queries' rows, its key's, its value's."""
    head, groups = (
        llm["hidden_size"] // llm["num_attention_heads"],
        llm["num_attention_heads"] // llm["num_key_value_heads"],
    )
    rows = (states @ own["attention.wqkv"].T).split(head, dim=-1)
    q, k, v = [], [], []
    for unit in range(llm["num_key_value_heads"]):
        own_rows = rows[unit * (groups + 2) : (unit + 1) * (groups + 2)]
        q += own_rows[:groups]
        k += [own_rows[groups]] * groups
        v += [own_rows[groups + 1]] * groups
    return torch.stack(q), torch.stack(k), torch.stack(v)


def phi3_heads(llm: dict, own: dict[str, Tensor], states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    head, heads = llm["hidden_size"] // llm["num_attention_heads"], llm["num_attention_heads"]
    rows = torch.stack((states @ own["self_attn.qkv_proj"].T).split(head, dim=-1))
    return rows[:heads], rows[heads : 2 * heads], rows[2 * heads :]


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    return torch.cat(list(scores.softmax(-1) @ v), dim=-1)


def rope(llm: dict, length: int) -> tuple[Tensor, Tensor]:
    """cos, sin [S, head_dim]: dynamic NTK (InternLM2) or LongRoPE (Phi-3; arXiv 2402.13753)."""
    scaling, base = llm["rope_scaling"], llm["rope_theta"]
    head = llm["hidden_size"] // llm["num_attention_heads"]
    stretch, loud = torch.ones(head // 2), 1.0
    if scaling["type"] == "dynamic":
        context = llm["max_position_embeddings"]
        if length > context:
            base = base * (scaling["factor"] * length / context - (scaling["factor"] - 1)) ** (head / (head - 2))
    else:
        context = llm["original_max_position_embeddings"]
        stretch = torch.tensor(scaling["long_factor" if length > context else "short_factor"])
        loud = math.sqrt(1 + math.log(llm["max_position_embeddings"] / context) / math.log(context))
    frequencies = 1 / (stretch * base ** (torch.arange(0, head, 2) / head))
    angles = torch.outer(torch.arange(length).float(), frequencies).repeat(1, 2)
    return angles.cos() * loud, angles.sin() * loud


def turn(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = states.chunk(2, dim=-1)
    return states * cos + torch.cat([-right, left], dim=-1) * sin


def rms(states: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * states / (states.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def tower_states(config: dict, weights: dict[str, Tensor], tile: Tensor) -> Tensor:
    """Patches [rows, columns, D] of one tile [3, height, width], after the last layer."""
    tower = config["vision_config"]
    heads, eps, side = tower["num_attention_heads"], tower["layer_norm_eps"], TILE // PATCH
    kernel = weights["vision_model.embeddings.patch_embedding.weight"].flatten(1)
    patches = [
        kernel @ tile[:, PATCH * row : PATCH * (row + 1), PATCH * column : PATCH * (column + 1)].flatten()
        + weights["vision_model.embeddings.patch_embedding.bias"]
        for row in range(side)
        for column in range(side)
    ]
    states = torch.cat([weights["vision_model.embeddings.class_embedding"][0], torch.stack(patches)])
    states = states + weights["vision_model.embeddings.position_embedding"][0]
    for layer in range(tower["num_hidden_layers"]):
        start = f"vision_model.encoder.layers.{layer}."
        own = {name.removeprefix(start): weight for name, weight in weights.items() if name.startswith(start)}

        def norm(values: Tensor, name: str, own: dict[str, Tensor] = own) -> Tensor:
            if tower["norm_type"] == "rms_norm":
                return rms(values, own[f"{name}.weight"], eps)
            return F.layer_norm(values, values.shape[-1:], own[f"{name}.weight"], own[f"{name}.bias"], eps)

        qkv = norm(states, "norm1") @ own["attn.qkv.weight"].T
        if tower["qkv_bias"]:
            qkv = qkv + own["attn.qkv.bias"]
        q, k, v = qkv.chunk(3, dim=-1)
        if tower["qk_normalization"]:
            q, k = rms(q, own["attn.q_norm.weight"], eps), rms(k, own["attn.k_norm.weight"], eps)
        q, k, v = (torch.stack(values.chunk(heads, dim=-1)) for values in (q, k, v))
        mixed = attention(q, k, v, causal=False) @ own["attn.proj.weight"].T + own["attn.proj.bias"]
        states = states + own["ls1"] * mixed
        inner = F.gelu(norm(states, "norm2") @ own["mlp.fc1.weight"].T + own["mlp.fc1.bias"])
        states = states + own["ls2"] * (inner @ own["mlp.fc2.weight"].T + own["mlp.fc2.bias"])
    return states[1:].unflatten(0, (side, side))


def projected(weights: dict[str, Tensor], patches: Tensor) -> Tensor:
    """Four neighbouring patches side by side (pixel shuffle, version 2), then the projector: [tokens, width]."""
    tokens = torch.stack(
        [
            torch.cat(
                [patches[row, column], patches[row, column + 1], patches[row + 1, column], patches[row + 1, column + 1]]
            )
            for row in range(0, len(patches), 2)
            for column in range(0, len(patches), 2)
        ]
    )
    tokens = F.layer_norm(tokens, tokens.shape[-1:], weights["mlp1.0.weight"], weights["mlp1.0.bias"])
    inner = F.gelu(tokens @ weights["mlp1.1.weight"].T + weights["mlp1.1.bias"])
    return inner @ weights["mlp1.3.weight"].T + weights["mlp1.3.bias"]


# ---- its tokenizer ----


def write_tokenizer(folder: Path, text: str) -> int:
    """tokenizer.model, tokenizer_config.json and added_tokens.json; returns the size of the vocabulary.

    InternLM2 names free pieces anew (the turn tokens) and has no space before a text; Phi-3 appends all and has one.
    """
    lm2 = text == "InternLM2ForCausalLM"
    free = ["[UNUSED_TOKEN_0]", "[UNUSED_TOKEN_1]"] if lm2 else []
    model = sentencepiece_model(WORDS + free, dummy_prefix=not lm2)
    pieces = len(model.pieces)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    turns = (
        ["<|im_end|>", "<|im_start|>"]
        if lm2
        else ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
    )
    added = {token: pieces - len(free) + place for place, token in enumerate(turns + PICTURES)}
    flags = {"lstrip": False, "normalized": False, "rstrip": not lm2, "single_word": False, "special": True}
    config = {
        "tokenizer_class": "InternLM2Tokenizer" if lm2 else "LlamaTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "added_tokens_decoder": {str(added[token]): {"content": token, **flags} for token in turns},
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "</s>",
        "add_bos_token": True,
        "add_eos_token": False,
        "model_max_length": 8192,
    }
    if not lm2:
        config["legacy"] = False
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "added_tokens.json").write_text(json.dumps(added))
    return max(added.values()) + 1


def sentencepiece_model(words: list[str], dummy_prefix: bool) -> Message:
    """Byte-pair encoding whose scores fall in the order of `words`, with all bytes to fall back on."""
    pb2 = import_protobuf()
    model = pb2.ModelProto()
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = 2, True
    model.normalizer_spec.add_dummy_prefix, model.normalizer_spec.remove_extra_whitespaces = dummy_prefix, False
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3} | {f"<0x{byte:02X}>": 6 for byte in range(256)}
    for piece, kind in kinds.items():
        model.pieces.add(piece=piece, score=0.0, type=kind)
    for place, word in enumerate(words):
        model.pieces.add(piece=word, score=-float(place), type=1)
    return model


def sentencepiece_ids(model: Message, text: str) -> list[int]:
    """Returns the ids of a text without added tokens.

    SentencePiece's rule is to join the two neighbours of the best score, until none join.
    """
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == 1}
    ids = {piece.piece: index for index, piece in enumerate(model.pieces)}
    parts = list(("▁" if model.normalizer_spec.add_dummy_prefix else "") + text.replace(" ", "▁"))
    while True:
        joins = [(scores[a + b], -place) for place, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in scores]
        if not joins:
            break
        place = -max(joins)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    spelt = [[part] if part in ids else [f"<0x{byte:02X}>" for byte in part.encode()] for part in parts]
    return [ids[piece] for pieces in spelt for piece in pieces]
