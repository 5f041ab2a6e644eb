"""Where the tensors of a published InternVL2 (arXiv 2404.16821) stand in transformers' InternVL: tables of names.

Letters: H head_dim, K key/value heads, G query heads to a key/value head.
"""

from dataclasses import dataclass

from torch import Tensor
from transformers import InternVLConfig

Shape = tuple[int, ...]
Places = dict[str, tuple[str, ...]]
"""Published name of a tensor or module: names here of the parts that it is cut into."""

VISION_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
    "norm_type",
    "attention_dropout",
)
TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)

VISION: Places = {
    "vision_model.embeddings.class_embedding": ("model.vision_tower.embeddings.cls_token",),
    "vision_model.embeddings.patch_embedding": ("model.vision_tower.embeddings.patch_embeddings.projection",),
    "vision_model.embeddings.position_embedding": ("model.vision_tower.embeddings.position_embeddings",),
    "mlp1.0": ("model.multi_modal_projector.layer_norm",),
    "mlp1.1": ("model.multi_modal_projector.linear_1",),
    "mlp1.3": ("model.multi_modal_projector.linear_2",),
}
VISION_LAYER: Places = {
    "ls1": ("lambda_1",),
    "ls2": ("lambda_2",),
    "norm1": ("layernorm_before",),
    "norm2": ("layernorm_after",),
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attn.q_norm": ("attention.q_norm",),
    "attn.k_norm": ("attention.k_norm",),
    "attn.proj": ("attention.projection_layer",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}


@dataclass(frozen=True)
class TextModel:
    """A text model of the published sizes.

    Attributes:
        model_type: of transformers' class that computes the same.
        fields: of its config, besides TEXT_FIELDS, under the same name in both.
        rope: published type of RoPE scaling: fields of it that are kept.
        rope_type: transformers' name of that type.
        tensors, layer: places of all but the layers', and of a layer's.
    """

    model_type: str
    fields: tuple[str, ...]
    rope: dict[str, tuple[str, ...]]
    rope_type: str
    tensors: Places
    layer: Places


SCALING = ("short_factor", "long_factor")
TEXT_MODELS = {
    "InternLM2ForCausalLM": TextModel(
        model_type="llama",
        fields=(),
        rope={"dynamic": ("factor",)},
        rope_type="dynamic",
        tensors={
            "language_model.model.tok_embeddings": ("model.language_model.embed_tokens",),
            "language_model.model.norm": ("model.language_model.norm",),
            "language_model.output": ("lm_head",),
        },
        layer={
            "attention_norm": ("input_layernorm",),
            "attention.wqkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "attention.wo": ("self_attn.o_proj",),
            "ffn_norm": ("post_attention_layernorm",),
            "feed_forward.w1": ("mlp.gate_proj",),
            "feed_forward.w3": ("mlp.up_proj",),
            "feed_forward.w2": ("mlp.down_proj",),
        },
    ),
    "Phi3ForCausalLM": TextModel(
        model_type="phi3",
        fields=("original_max_position_embeddings", "sliding_window", "resid_pdrop", "attention_dropout"),
        rope={"su": SCALING, "longrope": SCALING},
        rope_type="longrope",
        tensors={
            "language_model.model.embed_tokens": ("model.language_model.embed_tokens",),
            "language_model.model.norm": ("model.language_model.norm",),
            "language_model.lm_head": ("lm_head",),
        },
        layer={
            name: (name,)
            for name in (
                "input_layernorm",
                "self_attn.qkv_proj",
                "self_attn.o_proj",
                "post_attention_layernorm",
                "mlp.gate_up_proj",
                "mlp.down_proj",
            )
        },
    ),
}


def tensor_places(config: InternVLConfig, text: TextModel, shapes: dict[str, Shape]) -> Places:
    """Published name of every tensor and where its parts go, all of `shapes`, the tensors of the stock class."""
    modules = VISION | text.tensors
    modules |= _layers(
        "vision_model.encoder.layers",
        "model.vision_tower.encoder.layer",
        VISION_LAYER,
        config.vision_config.num_hidden_layers,
    )
    modules |= _layers(
        "language_model.model.layers", "model.language_model.layers", text.layer, config.text_config.num_hidden_layers
    )
    # What a module has (a weight, a bias, or itself as a bare parameter; a norm or not) the config has told the stock class.
    places = {
        published + suffix: tuple(part + suffix for part in parts)
        for published, parts in modules.items()
        for suffix in ("", ".weight", ".bias")
        if parts[0] + suffix in shapes
    }
    assert sorted(part for parts in places.values() for part in parts) == sorted(shapes), "every tensor has one source"
    return places


def _layers(published: str, here: str, layer: Places, num_layers: int) -> Places:
    return {
        f"{published}.{index}.{name}": tuple(f"{here}.{index}.{part}" for part in parts)
        for index in range(num_layers)
        for name, parts in layer.items()
    }


def source_shape(parts: tuple[str, ...], shapes: dict[str, Shape]) -> Shape:
    """Of the tensor that is cut, along its rows, into these parts."""
    first = shapes[parts[0]]
    return first if len(parts) == 1 else (sum(shapes[part][0] for part in parts), *first[1:])


def cut(tensor: Tensor, parts: tuple[str, ...], shapes: dict[str, Shape], groups: int) -> tuple[Tensor, ...]:
    """A tensor as its parts: one, or queries, keys and values.

    The rows of queries, keys and values [K (G + 2) H, ...] stand in `groups` (K) times G blocks of queries, one of keys and
    one of values, of H rows each.
    """
    if len(parts) == 1:
        return (tensor,)
    blocks = tensor.unflatten(0, (groups, -1, shapes[parts[-1]][0] // groups))
    return tuple(part.flatten(0, 2).clone() for part in (blocks[:, :-2], blocks[:, -2:-1], blocks[:, -1:]))
