"""A checkpoint from disk, dense or sparse alike, ready to answer.

A sparse checkpoint carries its modelling files; they are copies of this checkout's, so its own code runs only where asked.
"""

import os

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel, ProcessorMixin

from checkpoints.build import load_dense
from checkpoints.families import class_of_type, is_sparse
from checkpoints.processor import load_processor
from modeling.user_error import UserError


def load_checkpoint(
    path: str | os.PathLike, dtype: torch.dtype | str, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Loads a dense model (as `load_dense`) or a sparse checkpoint, and its processor.

    Args:
        path: a folder or a model id on the Hub.
        dtype: of the weights in memory; "auto": as stored.
        trust_remote_code: a sparse checkpoint runs its own modelling files rather than this checkout's.
    Raises:
        UserError: no such model, an unsupported one, or weights that are incomplete or not safetensors.
    """
    sparse = _sparse_class(path)
    if sparse is None:
        return load_dense(path, dtype, trust_remote_code)
    loader = AutoModelForImageTextToText if trust_remote_code else sparse
    try:
        model, report = loader.from_pretrained(
            path, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a whole sparse checkpoint ({error})") from None
    # transformers fills what is missing with random numbers and says so only in a log line.
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(f"{path}: {len(missing)} weights are missing, first {missing[0]}")
    return model, load_processor(path, trust_remote_code)


def _sparse_class(path: str | os.PathLike) -> type[PreTrainedModel] | None:
    """Where the config is a sparse model's; whatever else it is, or that there is none, the dense loader judges."""
    try:
        values, _ = PreTrainedConfig.get_config_dict(path)
    except OSError:
        return None
    return class_of_type(values["model_type"]) if is_sparse(values) else None
