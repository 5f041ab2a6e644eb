"""Encoded samples into a batch. B samples, S tokens of the longest one."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import ProcessorMixin

from data.conversations import IGNORE_INDEX
from data.images import strung
from modeling.user_error import UserError

TEXT_KEYS = ("input_ids", "attention_mask", "labels")
"""Of a batch; what else it holds are pictures, as the image processor gives them."""


def pictures_of(batch: dict) -> dict:
    """A batch without its text."""
    return {key: value for key, value in batch.items() if key not in TEXT_KEYS}


class Collator:
    """Pads the token rows of samples from `encode` or `encode_prompt` and strings their pictures together.

    Returns:
        input_ids and attention_mask [B, S] int64; labels [B, S] int64 where the samples have them; and each key of the
        image processor, for LLaVA pixel_values [images of the batch, 3, H, W], in the order of the samples; where pictures
        are tiles [images, tiles, 3, H, W], filled up with zeros to the most tiles. A batch without images has no such key.
    """

    def __init__(self, processor: ProcessorMixin, padding_side: Literal["right", "left"] = "right"):
        pad_token_id = processor.tokenizer.pad_token_id
        if pad_token_id is None:
            raise UserError("the processor's tokenizer has no pad token, batches need one")
        self._padding = {"input_ids": pad_token_id, "attention_mask": 0, "labels": IGNORE_INDEX}
        self._padding_side = padding_side

    def __call__(self, samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        samples = [{"attention_mask": torch.ones_like(sample["input_ids"]), **sample} for sample in samples]
        batch = {}
        for key in dict.fromkeys(key for sample in samples for key in sample):
            rows = [sample[key] for sample in samples if key in sample]
            if key in self._padding:
                batch[key] = pad_sequence(
                    rows, batch_first=True, padding_value=self._padding[key], padding_side=self._padding_side
                )
            else:
                batch[key] = strung(rows)
        return batch


def predicts_answer(labels: torch.Tensor) -> torch.Tensor:
    """Returns the rows whose next token is supervised: labels [B, S] int64 -> [B, S] bool.

    This is the one place where labels are shifted against the rows that predict them.
    """
    return F.pad(labels[:, 1:] != IGNORE_INDEX, (0, 1), value=False)
