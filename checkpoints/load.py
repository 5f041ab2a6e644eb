"""Loads a checkpoint, dense or sparse, ready to answer questions.

A sparse checkpoint carries its modelling files. They are copies of this checkout's, so its own code runs only where the
caller asks for it.
"""

import os

import torch
from transformers import PreTrainedModel, ProcessorMixin

from checkpoints.build import load_dense
from checkpoints.checks.folder import folder_with_weights
from checkpoints.config import read_config
from checkpoints.families import is_sparse
from checkpoints.processor import load_processor
from checkpoints.sparse import load_sparse, sparse_config


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
    if not is_sparse(read_config(path)):
        return load_dense(path, dtype, trust_remote_code)
    sparse_config(path)
    folder_with_weights(path)
    processor = load_processor(path, trust_remote_code)  # before the weights, which take longer
    return load_sparse(path, dtype, trust_remote_code), processor
