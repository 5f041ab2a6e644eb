"""The folder of a checkpoint, which a stranger may have made. It is looked at before any library reads from it.

Only the files that are named here are looked at, as no library reads another one. Weights are safetensors: all other
kinds run code when they are read.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError

from checkpoints.checks.fields import check_fields
from modeling.json_file import MOST_BYTES, read_json, read_text
from modeling.user_error import UserError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
CODE = "*.py"
"""Runs only where the caller trusts it."""
MODEL = (CONFIG, "generation_config.json", INDEX, ADAPTER, CODE)
"""Files beside the weights that a model is loaded from."""
PICTURES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
"""Files that say how pictures and videos are prepared."""
PROCESSOR = (
    CONFIG,
    CODE,
    *PICTURES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)
"""Files that a processor is loaded from, with its tokenizer and its chat templates."""

LARGE = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", INDEX)
"""Files that list tokens or tensors. The others are smaller by far."""
MOST_SMALL = 16 * 2**20
"""Size of the largest of the others, in bytes."""
MOST_TEMPLATE = 2**18
"""Size of the largest chat template, in bytes."""
PLAIN = re.compile(r"[\w+-][\w.+-]*\.safetensors")
"""Names of weight files that an index may have."""


def safe_folder(path: str | os.PathLike, names: Iterable[str]) -> Path:
    """Returns the folder of a checkpoint, after a look at some of its files. Those that are not there are left out.

    Args:
        path: a folder or a model id on the Hub, whose files are downloaded.
        names: of the files, or patterns.

    Raises:
        UserError: there is no such model, a file is a link to elsewhere, too large, not the JSON that it should be, or
            a field of it has a value that no model has.
    """
    folder = local_folder(path, names)
    for file in _files(folder, names):
        _refuse_link(folder, file)
        if file.suffix == ".json":
            checked_json(file)
        elif file.suffix == ".jinja":
            read_text(file, MOST_TEMPLATE)
        elif not file.is_file() or file.stat().st_size > MOST_BYTES:
            raise UserError(f"{file}: is no ordinary file of up to {MOST_BYTES:,} bytes")
    return folder


def checked_json(file: Path) -> dict:
    """Returns the object in a JSON file of a model. Raises UserError as `read_json` and `check_fields`."""
    fields = read_json(file, MOST_BYTES if file.name in LARGE else MOST_SMALL)
    if file.name not in LARGE:
        check_fields(fields, str(file))
    return fields


def folder_with_weights(path: str | os.PathLike) -> Path:
    """Returns the folder of a checkpoint after a look at its model's files: config, index and weights.

    Raises:
        UserError: as `safe_folder`, an adapter lies beside the weights, there are no safetensors, or the index names
            files that are not there, of another kind or of another folder.
    """
    folder = safe_folder(path, MODEL)
    if _is_there(folder / ADAPTER):
        raise UserError(
            f"{path}: holds {ADAPTER}, so that transformers would load an adapter on top of the model; "
            "merge the adapter into the weights, or remove its files"
        )
    weight_files(local_folder(path, named_weights(folder)))
    return folder


def weight_files(folder: Path) -> list[Path]:
    """Returns the files that hold the weights in a folder, sorted by name.

    Raises:
        UserError: there are none, one is missing or a link to elsewhere, or as `named_weights`.
    """
    files = [folder / name for name in named_weights(folder)]
    for file in files:
        if not _is_there(file):
            raise UserError(f"{folder}: no readable safetensors weights, the only kind read here (no {file.name})")
        _refuse_link(folder, file)
        if not file.is_file():
            raise UserError(f"{file}: is no ordinary file")
    return files


def named_weights(folder: Path) -> list[str]:
    """Returns the names of a folder's weight files: the one file if it is there, or those that the index names.

    Raises:
        UserError: the index is no readable JSON, lists no tensors, or names anything but safetensors of the folder.
    """
    index = folder / INDEX
    if _is_there(folder / WEIGHTS) or not _is_there(index):
        return [WEIGHTS]
    _refuse_link(folder, index)
    fields = checked_json(index)
    weight_map = fields.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: weight_map: expected an object of tensors and their files")
    if not isinstance(fields.get("metadata", {}), dict):
        raise UserError(f"{index}: metadata: got {fields['metadata']!r}, expected an object")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not PLAIN.fullmatch(name):
            raise UserError(
                f"{index}: weight_map: {tensor}: got {name!r}, allowed: names of files in the same folder that end in "
                ".safetensors"
            )
    return sorted(set(weight_map.values()))


def local_folder(path: str | os.PathLike, names: Iterable[str]) -> Path:
    """Returns the folder of a model. Of a model on the Hub, these files are downloaded to the Hub's cache.

    Raises:
        UserError: there is no such model.
    """
    folder = Path(path)
    try:
        if folder.is_dir():
            return folder
        if folder.parent != Path() and folder.parent.is_dir():
            # Otherwise the Hub would be asked for a model of this name, which takes minutes.
            raise UserError(f"{path}: no such model in the folder {folder.parent}")
        return Path(snapshot_download(os.fspath(path), allow_patterns=list(names)))
    except (OSError, HFValidationError, HTTPError) as error:
        raise UserError(f"{path}: neither a model folder nor a model on the Hub within reach ({error})") from None


def _files(folder: Path, names: Iterable[str]) -> list[Path]:
    """Returns the files of these names or patterns that are there."""
    found = [file for name in names for file in (sorted(folder.glob(name)) if "*" in name else [folder / name])]
    return [file for file in found if _is_there(file)]


def _is_there(file: Path) -> bool:
    return os.path.lexists(file)


def _refuse_link(folder: Path, file: Path) -> None:
    """Raises UserError if a file lies outside of its folder. Snapshots of the Hub's cache are links to its blobs."""
    try:
        real, root = file.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise UserError(f"{file}: cannot be read ({error})") from None
    in_cache = root.parent.name == "snapshots" and real.is_relative_to(root.parent.parent / "blobs")
    if not real.is_relative_to(root) and not in_cache:
        raise UserError(f"{file}: is a link to {real}, allowed: files of the folder's own")
