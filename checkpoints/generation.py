"""The generation config of a model, so that it can be saved again."""

import os

from transformers import GenerationConfig

from checkpoints.config import LOADING_ERRORS, said
from modeling.user_error import UserError

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Settings of a generation config that only sampling reads."""


def make_savable(path: str | os.PathLike, generation_config: GenerationConfig) -> None:
    """Drops what greedy decoding never reads, such as a temperature, and checks what is left.

    Older checkpoints have such settings, and transformers refuses to save them. The student inherits them, and is saved
    after its training.

    Raises:
        UserError: transformers would refuse to save what is left.
    """
    if not generation_config.do_sample:
        for name in SAMPLING:
            setattr(generation_config, name, None)
    try:
        generation_config.validate(strict=True)
    except LOADING_ERRORS as error:
        raise UserError(f"{path}: generation_config.json: {said(error)}") from None
