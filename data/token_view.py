"""Tokens of a sample as a reader can take them in."""

from itertools import groupby

import torch
from transformers import PreTrainedTokenizerBase

from data.conversations import IGNORE_INDEX

SHORTENED_FROM = 4
"""So many equal tokens in a row are written once, with their number."""


def readable(input_ids: torch.Tensor, labels: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the text of tokens. ⟦ and ⟧ enclose those that are learned, and a picture's are written once.

    Args:
        input_ids: [S] integers, placeholders expanded.
        labels: [S] integers, -100 where a token is not learned.
    """
    learned = (labels != IGNORE_INDEX).tolist()
    parts = []
    for is_learned, group in groupby(zip(input_ids.tolist(), learned, strict=True), key=lambda pair: pair[1]):
        text = _shortened([token for token, _ in group], tokenizer)
        parts.append(f"⟦{text}⟧" if is_learned else text)
    return "".join(parts)


def _shortened(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the text of tokens, long runs of one token as `token × count`."""
    text, plain = "", []
    for token, run in groupby(tokens):
        count = len(list(run))
        if count < SHORTENED_FROM:
            plain += [token] * count
            continue
        text += tokenizer.decode(plain) + f"{tokenizer.decode([token])} × {count} "
        plain = []
    return text + tokenizer.decode(plain)
