"""Placeholders in a text: one for each picture or video, which is expanded into that one's tokens."""

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
import torch
from transformers import ProcessorMixin

from data.media import READERS
from data.sample import MEDIA, Medium, Sample, mark_of
from data.videos import refuse_videos
from modeling.user_error import UserError

_MARKS = tuple(map(mark_of, MEDIA))


def refuse_unshowable(sample: Sample, processor: ProcessorMixin) -> None:
    """Raises UserError where a sample has videos that the model does not take, or a text that holds a placeholder.

    Such a text would stand for a picture, a video or a sound.
    """
    texts = "\n".join((sample.system or "", *chain.from_iterable(sample.turns)))
    if sample.videos or mark_of("video") in texts:
        refuse_videos(processor)
    tokens = (getattr(processor, f"{kind}_token", None) for kind in (*MEDIA, "audio"))
    for token in tokens:
        if token is not None and token not in _MARKS and token in texts:
            raise UserError(f"a text holds {token!r}, which stands for what the model is shown; no text may hold it")


def check_placeholders(input_ids: np.ndarray, sample: Sample, processor: ProcessorMixin) -> None:
    """Raises UserError unless a text has one placeholder for each picture and each video of its sample.

    Args:
        input_ids: [S] integers, placeholders not expanded.
    """
    for medium in MEDIA:
        count = np.count_nonzero(input_ids == _placeholder(medium, processor))
        expected = len(sample.files(medium))
        if count != expected:
            raise UserError(
                f"{count} {medium} tokens for {expected} {medium}s; no text may hold the {medium} token "
                f"{getattr(processor, f'{medium}_token')!r}, and the chat template must show every {medium}"
            )


def add_media(
    tokens: dict[str, torch.Tensor], sample: Sample, processor: ProcessorMixin, max_pixels: int
) -> dict[str, torch.Tensor]:
    """Returns `tokens` of `encode_text` with each placeholder expanded, and beside them what the model is shown."""
    shown: dict[str, torch.Tensor] = {}
    tokens_of: dict[Medium, list[torch.Tensor]] = {}
    for medium in MEDIA:
        inputs, tokens_of[medium] = READERS[medium].process(sample.files(medium), processor, max_pixels)
        shown |= inputs
    return expand_placeholders(tokens, tokens_of, processor) | shown


def expand_placeholders(
    tokens: dict[str, torch.Tensor], tokens_of: Mapping[Medium, Sequence[torch.Tensor]], processor: ProcessorMixin
) -> dict[str, torch.Tensor]:
    """Returns `tokens` of `encode_text`, as int64, with each placeholder replaced by the tokens of its file.

    Args:
        tokens_of: for each medium, the tokens [N] of each file.
    """
    repeats = torch.ones_like(tokens["input_ids"])
    for medium, files in tokens_of.items():
        repeats[tokens["input_ids"] == _placeholder(medium, processor)] = torch.tensor(
            list(map(len, files)), dtype=repeats.dtype
        )
    expanded = {key: value.long().repeat_interleave(repeats) for key, value in tokens.items()}
    for medium, files in tokens_of.items():
        if files:
            here = tokens["input_ids"] == _placeholder(medium, processor)
            expanded["input_ids"][here.repeat_interleave(repeats)] = torch.cat(list(files))
    return expanded


def _placeholder(medium: Medium, processor: ProcessorMixin) -> int:
    """Returns the token that stands for a file of a medium, -1 if the model has none."""
    found = getattr(processor, f"{medium}_token_id", None)
    return -1 if found is None else found
