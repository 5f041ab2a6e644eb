"""How much memory a config may ask for: not much more than its weights take on the disk."""

import copy
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from checkpoints.checks.folder import weight_files
from checkpoints.config import LOADING_ERRORS, said
from modeling.user_error import UserError

NUMBERS_PER_BYTE = 8
"""As many as a weight of one bit has. Quantised weights of four bits are packed two in a byte."""


def refuse_more_than_weights(model_class: type[PreTrainedModel], config: PreTrainedConfig, folder: Path) -> None:
    """Builds a model without memory, and counts its numbers.

    transformers would take memory for all that is missing in the files before it says so.

    Args:
        model_class: the class that loads the weights.
        config: of the model.
        folder: where the weights lie.

    Raises:
        UserError: the model cannot be built, or it has more numbers than its files can hold.
    """
    try:
        with torch.device("meta"), no_init_weights():
            model = model_class(copy.deepcopy(config))  # which notes its kind of attention there
    except LOADING_ERRORS as error:
        raise UserError(f"{folder}: transformers cannot build this model ({said(error)})") from None
    numbers = sum(parameter.numel() for parameter in model.parameters())
    stored = sum(file.stat().st_size for file in weight_files(folder))
    if numbers > NUMBERS_PER_BYTE * stored:
        raise UserError(
            f"{folder}: its config describes {numbers:,} weights, more than its files of {stored:,} bytes can hold"
        )
