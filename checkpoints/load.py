"""Loads a checkpoint, dense or sparse, ready to answer questions.

A sparse checkpoint carries its modelling files. They are copies of this checkout's, so its own code runs only where the
caller asks for it.
"""

import os

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin

from checkpoints.build import load_dense
from checkpoints.config import BROKEN_FIELDS, LOADING_ERRORS, read_config
from checkpoints.families import class_of_type, is_sparse
from checkpoints.processor import load_processor
from modeling.user_error import UserError


def expect_new_shapes() -> None:
    """Tells torch, for this process, that attention will see ever new lengths of texts.

    On Hopper and Blackwell GPUs torch 2.11 to 2.13 prefers cuDNN's attention, which builds a plan for each new shape in
    up to half a second, and keeps it. A sparse layer has shapes of its own, as other heads serve its visual tokens.
    Torch's other kernels take any shape as it comes.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def load_checkpoint(
    path: str | os.PathLike, dtype: torch.dtype | str, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Loads a dense model (as `load_dense`) or a sparse checkpoint, and its processor.

    Args:
        path: a folder or a model id on the Hub.
        dtype: of the weights in memory. "auto" means as stored.
        trust_remote_code: a sparse checkpoint runs its own modelling files rather than this checkout's.

    Raises:
        UserError: there is no such model, it is not supported, or its weights are incomplete or not safetensors.
    """
    config = read_config(path)
    if not is_sparse(config):
        return load_dense(path, dtype, trust_remote_code)
    loader = AutoModelForImageTextToText if trust_remote_code else class_of_type(config["model_type"])
    try:
        model, report = loader.from_pretrained(
            path, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    except (*LOADING_ERRORS, *BROKEN_FIELDS, SafetensorError) as error:
        raise UserError(f"{path}: not a whole sparse checkpoint ({error})") from None
    # transformers fills what is missing with random numbers and says so only in a log line.
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(f"{path}: {len(missing)} weights are missing, first {missing[0]}")
    return model, load_processor(path, trust_remote_code)
