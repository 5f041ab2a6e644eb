"""Tables that say where the tensors of a published InternVL2 (arXiv 2404.16821) stand in transformers' InternVL.

Letters: H head_dim, K key/value heads, G query heads to a key/value head.
"""

from dataclasses import dataclass

from torch import Tensor
from transformers import InternVLConfig

Shape = tuple[int, ...]
Places = dict[str, tuple[str, ...]]
"""Published name of a tensor or module: the names in transformers of the parts that it is cut into."""

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
        model_type: the type of transformers' class that computes the same.
        fields: fields of its config, besides TEXT_FIELDS, that have the same name in both.
        rope: published type of RoPE scaling: the fields of it that are kept.
        rope_type: transformers' name of that type.
        tensors: places of the tensors outside the layers.
        layer: places of the tensors of one layer.
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
    """Returns the published name of every tensor and where its parts go.

    Args:
        config: transformers' config of the same model.
        text: its text model.
        shapes: name: shape of every tensor of the stock class. Each of them is a part of exactly one published tensor.
    """
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
    # A module may have a weight, a bias, or be a bare parameter itself. It may also be absent. The stock class, built
    # from the config, says which.
    places = {
        published + suffix: tuple(part + suffix for part in parts)
        for published, parts in modules.items()
        for suffix in ("", ".weight", ".bias")
        if parts[0] + suffix in shapes
    }
    assert sorted(part for parts in places.values() for part in parts) == sorted(shapes), "every tensor has one source"
    return places


def _layers(published: str, stock: str, layer: Places, num_layers: int) -> Places:
    """Returns the places of the tensors of all layers, given those of one."""
    return {
        f"{published}.{index}.{name}": tuple(f"{stock}.{index}.{part}" for part in parts)
        for index in range(num_layers)
        for name, parts in layer.items()
    }


def source_shape(parts: tuple[str, ...], shapes: dict[str, Shape]) -> Shape:
    """Returns the shape of the published tensor that is cut, along its rows, into these parts."""
    first = shapes[parts[0]]
    return first if len(parts) == 1 else (sum(shapes[part][0] for part in parts), *first[1:])


def split_tensor(tensor: Tensor, parts: tuple[str, ...], shapes: dict[str, Shape], groups: int) -> tuple[Tensor, ...]:
    """Returns the parts of a published tensor: itself, or queries, keys and values.

    Args:
        tensor: of any dtype. Where it is cut, its shape is [K (G + 2) H, ...]. Its rows are K groups, each of G blocks
            of queries, one block of keys and one block of values. A block has H rows.
        parts: names of the parts.
        shapes: name: shape of every tensor of the stock class.
        groups: K.
    """
    if len(parts) == 1:
        return (tensor,)
    blocks = tensor.unflatten(0, (groups, -1, shapes[parts[-1]][0] // groups))
    return tuple(part.flatten(0, 2).clone() for part in (blocks[:, :-2], blocks[:, -2:-1], blocks[:, -1:]))
