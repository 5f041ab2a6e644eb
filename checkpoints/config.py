"""The config of a model, read as JSON: none of the model's own code runs."""

import os
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from checkpoints.json_file import read_json
from modeling.user_error import UserError

# What transformers' `from_pretrained` raises because of the files it is given: a file that is missing or cannot be
# read, a library that is not installed, a setting it does not know, a field of the config that its validators refuse.
LOADING_ERRORS = (OSError, ImportError, ValueError, StrictDataclassError)
# What transformers, or a model as it is built, raises where a field of a file is absent, of another type or size, or
# does not go with the others.
BROKEN_FIELDS = (AttributeError, LookupError, TypeError, ArithmeticError, RuntimeError)

MOST_LAYERS = 10_000
"""A model of more layers is refused, before it is built layer by layer."""
LAYERS = ("num_hidden_layers", "depth")
"""Fields that count the layers of a text model or of a vision tower."""


def read_config(path: str | os.PathLike) -> dict:
    """Returns the fields of a model's config, as they stand in its JSON.

    Args:
        path: a model folder, a config's JSON file, or a model id on the Hub.

    Raises:
        UserError: there is no config, it is not a JSON object, its `model_type` is no text, or a number of layers is
            none.
    """
    path = Path(path)
    fields = _read_fields(path)
    model_type = fields.get("model_type")
    if not isinstance(model_type, str | None):
        raise UserError(f"{path}: model_type: got {model_type!r}, expected a text")
    for part in ("", "text_config", "vision_config"):
        values = fields.get(part) if part else fields
        for name in LAYERS if isinstance(values, dict) else ():
            layers = values.get(name)
            if isinstance(layers, int | float) and not 1 <= layers <= MOST_LAYERS:
                where = f"{part}.{name}".lstrip(".")
                raise UserError(f"{path}: {where}: got {layers}, allowed: 1 to {MOST_LAYERS:,}")
    return fields


def _read_fields(path: Path) -> dict:
    if path.parent != Path() and path.parent.is_dir() and not path.exists():
        # Otherwise the Hub would be asked for a model of this name, which takes minutes.
        raise UserError(f"{path}: no such model in the folder {path.parent}")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{path}: a folder without config.json is not a model")
        return read_json(path / "config.json")
    if path.is_file():
        return read_json(path)
    try:
        config, _ = PreTrainedConfig.get_config_dict(path)
    except OSError:
        raise UserError(f"{path}: neither a model folder, a config file, nor a model on the Hub within reach") from None
    return config
