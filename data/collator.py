"""Puts encoded samples together to a batch of B samples, padded to the S tokens of the longest."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import ProcessorMixin

from data.conversations import IGNORE_INDEX
from data.images import concatenate_pictures
from modeling.user_error import UserError

TEXT_KEYS = ("input_ids", "attention_mask", "labels")
"""The text of a batch. Its other keys are pictures, as the image processor gives them."""
KEPT_LOGITS = "teacher_logits"
"""The teacher's logits [supervised tokens, vocab] of a sample, where they were kept."""


def pictures_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns a batch without its text."""
    return {key: value for key, value in batch.items() if key not in TEXT_KEYS}


class Collator:
    """Pads the tokens of samples from `encode` or `encode_prompt` and concatenates their pictures.

    A call returns:
        input_ids and attention_mask: [B, S] int64.
        labels: [B, S] int64, where the samples have them.
        each key of the image processor: for LLaVA, pixel_values [pictures of the batch, 3, H, W] float32, in the order
            of the samples. Where pictures are cut into tiles it is [pictures, tiles, 3, H, W], filled up with zeros to
            the largest number of tiles. A batch without pictures has no such key.

    Raises:
        UserError: the tokenizer has no pad token.
    """

    def __init__(self, processor: ProcessorMixin, padding_side: Literal["right", "left"] = "right"):
        pad_token_id = processor.tokenizer.pad_token_id
        if pad_token_id is None:
            raise UserError("the processor's tokenizer has no pad token, batches need one")
        self._padding = {"input_ids": pad_token_id, "attention_mask": 0, "labels": IGNORE_INDEX}
        self._padding_side = padding_side

    def __call__(self, samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        samples = [{"attention_mask": torch.ones_like(sample["input_ids"]), **sample} for sample in samples]
        batch: dict[str, torch.Tensor] = {}
        for key in dict.fromkeys(key for sample in samples for key in sample):
            tensors = [sample[key] for sample in samples if key in sample]
            if key in self._padding:
                batch[key] = pad_sequence(
                    tensors, batch_first=True, padding_value=self._padding[key], padding_side=self._padding_side
                )
            else:
                batch[key] = concatenate_pictures(tensors)
        return batch


class PictureInEveryBatch:
    """Collates like another collator, and gives a batch without pictures one more row that has one.

    Sharded training needs it. Every process must run the vision tower, the projector and the visual rows of the decoder
    alike, or the others wait for it for ever. The row has no label, so neither loss nor gradients change.

    Args:
        collator: makes batches of samples.
        filler: an encoded sample with a picture, as the dataset gives it.
    """

    def __init__(self, collator: Collator, filler: dict[str, torch.Tensor]):
        self._collator = collator
        self._picture_keys = filler.keys() - {*TEXT_KEYS, KEPT_LOGITS}
        assert self._picture_keys, "the filler has no picture"
        unsupervised = {"labels": torch.full_like(filler["labels"], IGNORE_INDEX)}
        no_logits = {KEPT_LOGITS: filler[KEPT_LOGITS][:0]} if KEPT_LOGITS in filler else {}
        self._filler = {**filler, **unsupervised, **no_logits}

    def __call__(self, samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        has_picture = any(sample.keys() & self._picture_keys for sample in samples)
        return self._collator(samples if has_picture else [*samples, self._filler])


def predicts_answer(labels: torch.Tensor) -> torch.Tensor:
    """Returns the rows whose next token is supervised: labels [B, S] int64 -> [B, S] bool.

    This is the one place where labels are shifted against the rows that predict them.
    """
    return F.pad(labels[:, 1:] != IGNORE_INDEX, (0, 1), value=False)
