"""Converts an InternVL2 as it was published (arXiv 2404.16821) to a folder that transformers loads as its own InternVL.

The published folder has other names and comes with code. None of that code runs here. The config is read as JSON, the
weights as safetensors, one file after another. Every tensor is moved to its place, whole or cut along its rows. A
tensor that is missing, left over or of another shape is refused by name before anything is written. Nothing is
computed, so the way back is exact.
"""

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, InternVLConfig, InternVLForConditionalGeneration

from checkpoints.checks.folder import CONFIG, PROCESSOR, checked_json, safe_folder, weight_files
from checkpoints.config import LOADING_ERRORS, said
from checkpoints.internvl.processor import CHATS, IMAGE, read_tokenizer, write_processor
from checkpoints.internvl.tensors import (
    TEXT_FIELDS,
    TEXT_MODELS,
    VISION_FIELDS,
    Places,
    Shape,
    TextModel,
    source_shape,
    split_tensor,
    tensor_places,
)
from checkpoints.whole_folder import whole_folder
from modeling.configuration_sparse_internvl import tile_grid
from modeling.user_error import UserError

Choice = TypeVar("Choice")

FLOATS = ("BF16", "F16", "F32")
DTYPES = {name: name for name in ("bfloat16", "float16", "float32")}


def convert_internvl(source: Path, output: Path) -> None:
    """Writes the folder `output`, whole or not at all. It holds config, safetensors, tokenizer and processor.

    The largest weight file of `source` must fit in memory. `output` gets as many weight files. Stochastic depth, which
    only training uses, is dropped.

    Args:
        source: a folder of InternVL2-4B, 8B or 26B as published.
        output: a folder that is absent or empty.

    Raises:
        UserError: `output` holds something, `source` lacks a file or has a tensor too many or too few, or the model
            would compute something else in transformers.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: is there and not empty; choose another folder")
    if not source.is_dir():
        raise UserError(f"{source}: no such folder")
    safe_folder(source, PROCESSOR)
    published = _JsonObject(checked_json(source / CONFIG), f"{source / CONFIG}: ")
    text = published.inner("llm_config").choice("architectures", TEXT_MODELS)
    chat = published.choice("template", CHATS)
    tokenizer = read_tokenizer(source, chat)
    try:
        config = stock_config(published, text, image_token_id=tokenizer.convert_tokens_to_ids(IMAGE))
    except LOADING_ERRORS as error:
        raise UserError(f"{source / CONFIG}: {said(error)}") from None
    if len(tokenizer) > config.text_config.vocab_size:
        raise UserError(
            f"{source}: the tokenizer has {len(tokenizer)} tokens, the vocabulary {config.text_config.vocab_size}"
        )
    tiles = (published["min_dynamic_patch"], published["max_dynamic_patch"])
    if None in tiles or tiles[0] > tiles[1]:
        raise UserError(f"{source / CONFIG}: (min_dynamic_patch, max_dynamic_patch): got {tiles}, allowed: least, most")
    try:
        with torch.device("meta"):
            model = InternVLForConditionalGeneration(config)
    except LOADING_ERRORS as error:
        raise UserError(f"{source / CONFIG}: transformers cannot build this model ({said(error)})") from None
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    places = tensor_places(config, text, shapes)
    files = weight_files(source)
    _check_tensors(files, places, shapes)
    with whole_folder(output) as folder:
        config.save_pretrained(folder)
        special_ids = {"bos_token_id": config.text_config.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
        GenerationConfig(eos_token_id=tokenizer.eos_token_id, **special_ids).save_pretrained(folder)
        tile, tile_tokens = config.vision_config.image_size[0], config.image_seq_length
        write_processor(folder, tokenizer, chat, tile=tile, tile_tokens=tile_tokens, tiles=tiles)
        _write_weights(files, folder, places, shapes, config)


class _JsonObject:
    """A JSON object whose missing or unsupported fields are refused by name, with a UserError.

    Attributes:
        fields: the object.
        where: the start of every message: the file, and the path to this object inside it.
    """

    def __init__(self, fields: dict, where: str):
        self.fields, self.where = fields, where

    def __getitem__(self, name: str) -> Any:
        if name not in self.fields:
            raise UserError(f"{self.where}{name}: missing")
        return self.fields[name]

    def inner(self, name: str) -> "_JsonObject":
        """Returns the object in field `name`."""
        if not isinstance(self[name], dict):
            raise UserError(f"{self.where}{name}: got {self[name]!r}, expected an object")
        return _JsonObject(self[name], f"{self.where}{name}.")

    def choice(self, name: str, allowed: dict[str, Choice]) -> Choice:
        """Returns what `allowed` has for the field, or for its first entry where the field is a list."""
        got = self[name][0] if isinstance(self[name], list) and self[name] else self[name]
        if not isinstance(got, str) or got not in allowed:
            raise UserError(f"{self.where}{name}: got {got!r}, allowed: {', '.join(map(repr, allowed))}")
        return allowed[got]

    def demand(self, **expected: object) -> None:
        """Refuses every field that is not as expected."""
        for name, value in expected.items():
            if self[name] != value:
                raise UserError(f"{self.where}{name}: got {self[name]!r}, allowed: {value!r}")

    def pick(self, *names: str) -> dict:
        """Returns the fields of these names."""
        return {name: self[name] for name in names}


def stock_config(published: _JsonObject, text: TextModel, image_token_id: int) -> InternVLConfig:
    """Returns the config of the same model in transformers. Raises UserError where there is no such model."""
    tower, llm = published.inner("vision_config"), published.inner("llm_config")
    # transformers computes the same only with these: the channels of a shuffled pixel in v2's order, and the features
    # of the last layer.
    published.demand(
        ps_version="v2", select_layer=-1, downsample_ratio=0.5, dynamic_image_size=True, use_thumbnail=True
    )
    tower.demand(image_size=published["force_image_size"])
    tower.choice("norm_type", {"layer_norm": None, "rms_norm": None})
    if tower["qk_normalization"]:
        tower.demand(layer_norm_eps=1e-6)  # transformers' query and key norms use it, whatever the config says
    if text.model_type == "llama":
        llm.demand(bias=False)
    if llm.fields.get("tie_word_embeddings"):
        raise UserError(f"{llm.where}tie_word_embeddings: got True, allowed: False")
    config = InternVLConfig(
        architectures=[InternVLForConditionalGeneration.__name__],
        dtype=published.choice("torch_dtype", DTYPES),
        image_token_id=image_token_id,
        downsample_ratio=published["downsample_ratio"],
        tie_word_embeddings=False,
        vision_config=tower.pick(*VISION_FIELDS)
        | {
            "use_qk_norm": tower["qk_normalization"],
            "attention_bias": tower["qkv_bias"],
            "projection_dropout": tower["dropout"],
        },
        text_config=llm.pick(*TEXT_FIELDS, *text.fields)
        | {"model_type": text.model_type, "rope_parameters": _rope(llm, text), "tie_word_embeddings": False},
    )
    config.image_seq_length = prod(tile_grid(config))
    return config


def _rope(llm: _JsonObject, text: TextModel) -> dict:
    """Returns transformers' settings of RoPE: scaled beyond the length of pre-training, or not at all."""
    base = {"rope_type": "default", "rope_theta": llm["rope_theta"]}
    if llm["rope_scaling"] is None:
        return base
    scaling = llm.inner("rope_scaling")
    return base | scaling.pick(*scaling.choice("type", text.rope)) | {"rope_type": text.rope_type}


def _check_tensors(files: list[Path], places: Places, shapes: dict[str, Shape]) -> None:
    """Raises UserError, which names the first tensor that is stored twice, left over, missing, or not as expected."""
    stored = set()
    for file in files:
        try:
            headers = _headers(file)
        except SafetensorError as error:
            raise UserError(f"{file}: not a safetensors file ({error})") from None
        for name, shape, dtype in headers:
            if name in stored:
                raise UserError(f"{file}: {name}: stands in another file too")
            if name not in places:
                raise UserError(f"{file}: {name}: left over, this model has no place for it")
            expected = source_shape(places[name], shapes)
            if shape != expected or dtype not in FLOATS:
                raise UserError(f"{file}: {name}: got {dtype} {shape}, expected a float of shape {expected}")
            stored.add(name)
    missing = sorted(places.keys() - stored)
    if missing:
        raise UserError(f"{files[0].parent}: {missing[0]}: missing from the weights")


def _headers(file: Path) -> list[tuple[str, Shape, str]]:
    """Returns name, shape and dtype of every tensor in a file. Only the header is read."""
    with safe_open(file, framework="pt") as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118  (safe_open is no dict)
        return [(name, tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()]


def _write_weights(
    files: list[Path], folder: Path, places: Places, shapes: dict[str, Shape], config: InternVLConfig
) -> None:
    """Writes as many weight files as were read, and an index where there are several."""
    names = ["model.safetensors"]
    if len(files) > 1:
        names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    weight_map, total_size = {}, 0
    for name, file in zip(names, files, strict=True):
        converted = dict(_converted(file, places, shapes, config))
        save_file(converted, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(converted, name)
        total_size += sum(tensor.nbytes for tensor in converted.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _converted(
    file: Path, places: Places, shapes: dict[str, Shape], config: InternVLConfig
) -> Iterator[tuple[str, Tensor]]:
    """Yields name and tensor of everything that one published file becomes."""
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  (safe_open is no dict)
            parts = places[name]
            # The rows of the vision tower are one group: all queries, all keys, all values.
            groups = config.text_config.num_key_value_heads if name.startswith("language_model.") else 1
            yield from zip(parts, split_tensor(tensors.get_tensor(name), parts, shapes, groups), strict=True)
