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


def read_config(path: str | os.PathLike) -> dict:
    """Returns the fields of a model's config, as they stand in its JSON.

    Args:
        path: a model folder, a config's JSON file, or a model id on the Hub.

    Raises:
        UserError: there is no config, or it is not a JSON object.
    """
    path = Path(path)
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
