"""What fields of a model's JSON files may say, before any library takes them for sizes of memory or numbers of steps.

transformers checks the types of most fields of a config, and hardly any of their values. The rules here go by a field's
name, wherever it stands in a file: config.json, generation_config.json, or those of a processor.
"""

import re
from dataclasses import dataclass
from typing import Any

from modeling.user_error import UserError
from modeling.visual_plan import MOST_LAYERS

MAX_TILES = 64
"""Layouts of up to so many tiles are tried for each size of a picture."""
OWN_CHECKS = ("visual_plan", "quantization_config", "auto_map")
"""Fields that are checked by those who read them."""


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`. A field may also be null, or a list of such numbers."""

    least: float
    most: float
    whole: bool = True

    def __contains__(self, value: object) -> bool:
        types = int if self.whole else int | float
        return isinstance(value, types) and not isinstance(value, bool) and self.least <= value <= self.most

    def __str__(self) -> str:
        return f"{'integers' if self.whole else 'numbers'} from {self.least:,} to {self.most:,}"


LEAST = 1e-30
"""For numbers above 0."""
RANGES: tuple[tuple[str, Range], ...] = (
    ("num_hidden_layers|depth", Range(1, MOST_LAYERS)),
    (r"num_\w*(layers|blocks)|n_layers?|depths", Range(0, MOST_LAYERS)),
    ("vision_feature_layer", Range(-MOST_LAYERS, MOST_LAYERS)),
    (r"hidden_size|intermediate_size|embed_dim|head_dim|projection_dim|ffn_dim|d_model", Range(1, 2**20)),
    ("mlp_ratio", Range(LEAST, 1000, whole=False)),
    ("vocab_size", Range(1, 2**24)),
    (r"(original_)?max_position_embeddings|sliding_window", Range(1, 2**40)),
    (r"num_(attention_|key_value_)?heads", Range(1, 2**12)),
    ("image_size|force_image_size|height|width", Range(1, 2**13)),
    ("image_grid_pinpoints", Range(1, 2**16)),
    (r"(spatial_|temporal_)?(patch|merge)_size|num_channels|in_channels", Range(1, 2**12)),
    ("image_seq_length|num_image_token", Range(1, 2**20)),
    ("num_additional_image_tokens", Range(0, 2**12)),
    ("max_tiles|(min|max)_dynamic_patch|(min|max)_patches", Range(1, MAX_TILES)),
    ("min_pixels|max_pixels|shortest_edge|longest_edge", Range(1, 2**40)),
    ("resample", Range(0, 5)),
    ("rescale_factor|image_mean", Range(-1e6, 1e6, whole=False)),
    ("image_std", Range(LEAST, 1e6, whole=False)),
    (r"\w*(dropout|pdrop|layerdrop|drop_path_rate)(_prob)?", Range(0, 1, whole=False)),
    (r"(\w+_)?eps", Range(LEAST, 1, whole=False)),
    ("rope_theta", Range(LEAST, 1e18, whole=False)),
    ("(short_|long_)?factor", Range(LEAST, 1e6, whole=False)),
    ("downsample_ratio|partial_rotary_factor", Range(LEAST, 1, whole=False)),
    (r"initializer_(range|factor)", Range(0, 1e6, whole=False)),
    ("max_length|max_new_tokens|min_length|min_new_tokens|top_k", Range(0, 2**40)),
    ("num_beams|num_beam_groups|num_return_sequences", Range(1, 1000)),
    ("temperature|top_p|min_p|typical_p|repetition_penalty", Range(0, 1e6, whole=False)),
    (r"(bos|eos|pad|image|video|vision_start|vision_end)_token_(id|index)", Range(-1, 2**24)),
)
_RANGES = tuple((re.compile(names), allowed) for names, allowed in RANGES)
_FLAGS = re.compile(r"do_\w+|use_cache|crop_to_patches|use_thumbnail|dynamic_image_size")
_TEXTS = re.compile(r"model_type|rope_type|\w+_act|(processor|tokenizer)_class|\w+_processor_type|(torch_)?dtype")
_KERNELS = re.compile(r"_?(attn|experts)_implementation(_internal)?")
_REFUSED = {
    "transformers_weights": "names a file of weights, which may be of another kind than safetensors",
    "per_layer_config": "gives layers sizes of their own, which no family has",
}


def check_fields(fields: dict, where: str) -> None:
    """Raises UserError where a field has a value that no model has, or names code.

    Args:
        fields: the object in a JSON file.
        where: the file, which messages begin with.
    """
    for name, value in fields.items():
        _check(name, value, f"{where}: {name}")


def _check(name: str, value: Any, where: str) -> None:
    if value is None or name in OWN_CHECKS:
        return
    if name in _REFUSED:
        raise UserError(f"{where}: {_REFUSED[name]}; allowed: no such field")
    if _KERNELS.fullmatch(name):
        named = value.values() if isinstance(value, dict) else [value]
        if any("/" in str(text) for text in named):
            raise UserError(f"{where}: got {value!r}, allowed: an attention of transformers', no kernel's name")
        return
    if _FLAGS.fullmatch(name) and not isinstance(value, bool):
        raise UserError(f"{where}: got {value!r}, allowed: true or false")
    if _TEXTS.fullmatch(name) and not isinstance(value, str):
        raise UserError(f"{where}: got {value!r}, expected a text")
    for names, allowed in _RANGES:
        if names.fullmatch(name):
            refused = [number for number in _numbers(value) if number not in allowed]
            if refused:
                raise UserError(f"{where}: got {refused[0]!r}, allowed: {allowed}")
            return
    for part, inner in _parts(value):
        _check(part, inner, f"{where}.{part}")


def _numbers(value: Any) -> list:
    """Returns what stands in a list and in the lists in it, or the value itself."""
    if isinstance(value, list):
        return [number for part in value for number in _numbers(part)]
    return [value]


def _parts(value: Any) -> list[tuple[str, Any]]:
    """Returns the fields of an object, or of the objects in a list."""
    if isinstance(value, dict):
        return list(value.items())
    return [part for item in value for part in _parts(item)] if isinstance(value, list) else []
