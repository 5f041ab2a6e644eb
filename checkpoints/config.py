"""The config of a model, read as JSON: none of the model's own code runs."""

import os
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from checkpoints.checks.folder import CONFIG, checked_json, safe_folder
from modeling.user_error import UserError
from modeling.vision_flops import CLASS_TOKENS

# What the libraries raise because of the files they are given: a file that is missing or cannot be read, a library that
# is not installed, a setting they do not know, a field that their validators refuse, and, as a model is built, a field
# that is absent, of another type or size, or does not go with the others.
LOADING_ERRORS = (
    OSError,
    ImportError,
    ValueError,
    StrictDataclassError,
    AttributeError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    MemoryError,
)


def read_config(path: str | os.PathLike) -> dict:
    """Returns the fields of a model's config, as they stand in its JSON.

    Args:
        path: a model folder, a config's JSON file, or a model id on the Hub.

    Raises:
        UserError: there is no config, or as `checkpoints.checks.folder.safe_folder`.
    """
    file = Path(path)
    if not os.path.isfile(file):  # also says so of what can be no file's name
        folder = safe_folder(path, [CONFIG])
        file = folder / CONFIG
        if not file.is_file():
            raise UserError(f"{path}: a folder without {CONFIG} is not a model")
    return checked_json(file)


def check_tower(path: str | os.PathLike, config: PreTrainedConfig) -> None:
    """Raises UserError if a model's vision tower is none that its family has, sees no squares, or lacks a layer that
    is read.

    LLaVA's classes would build any model of transformers as a tower, also one that asks the Hub for its own weights.
    """
    tower = config.vision_config
    if isinstance(tower, tuple(CONFIG_MAPPING[kind] for kind in CLASS_TOKENS)):
        for name in ("image_size", "patch_size"):
            if not isinstance(getattr(tower, name), int):
                raise UserError(
                    f"{path}: vision_config.{name}: got {getattr(tower, name)!r}, allowed: one integer, as pictures "
                    "and patches of a LLaVA are squares"
                )
        read = config.vision_feature_layer
        for layer in read if isinstance(read, list) else [read]:
            if not -tower.num_hidden_layers - 1 <= layer <= tower.num_hidden_layers:
                raise UserError(
                    f"{path}: vision_feature_layer: got {layer}, the vision tower has {tower.num_hidden_layers} layers"
                )
    elif type(config).sub_configs["vision_config"] is AutoConfig:
        raise UserError(
            f"{path}: vision_config.model_type: got {tower.model_type!r}, allowed: {', '.join(CLASS_TOKENS)}"
        )


def said(error: Exception) -> str:
    """Returns what a library's error says. Some errors say nothing, or a key alone, and are named."""
    return f"{type(error).__name__}: {error}" if isinstance(error, LookupError) or not str(error) else str(error)
