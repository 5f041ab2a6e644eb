"""Loads the model of a sparse checkpoint."""

import os
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from checkpoints.checks.folder import folder_with_weights
from checkpoints.checks.weights import refuse_more_than_weights
from checkpoints.config import LOADING_ERRORS, check_tower, read_config, said
from checkpoints.families import class_of_type
from checkpoints.generation import make_savable
from modeling.user_error import UserError


def sparse_config(path: str | os.PathLike) -> PreTrainedConfig:
    """Returns the config of a sparse checkpoint, given its folder or its id on the Hub.

    Raises:
        UserError: as `read_config`, its family refuses it, or its plan does not fit it.
    """
    fields = read_config(path)
    try:
        config = class_of_type(fields["model_type"]).config_class.from_dict(fields)
    except LOADING_ERRORS as error:
        raise UserError(f"{path}: not a whole sparse checkpoint ({said(error)})") from None
    check_tower(path, config)
    return config


def load_sparse(path: str | os.PathLike, dtype: torch.dtype | str, trust_remote_code: bool = False) -> PreTrainedModel:
    """Loads the model of a sparse checkpoint. Arguments and errors are those of `load_checkpoint`."""
    config = sparse_config(path)
    folder = folder_with_weights(path)
    cls = class_of_type(config.model_type)
    arguments: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    if not trust_remote_code:
        refuse_more_than_weights(cls, config, folder)
    try:
        if trust_remote_code:
            loaded = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, **arguments)
        else:
            loaded = cls.from_pretrained(folder, config=config, **arguments)
    except (*LOADING_ERRORS, SafetensorError) as error:
        raise UserError(f"{path}: not a whole sparse checkpoint ({said(error)})") from None
    model, report = loaded
    # transformers fills what is missing with random numbers and says so only in a log line.
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(f"{path}: {len(missing)} weights are missing, first {missing[0]}")
    make_savable(path, model.generation_config)
    return model
