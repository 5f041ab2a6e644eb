"""Puts encoded samples together to a batch of B samples, padded to the S tokens of the longest."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import ProcessorMixin

from data.conversations import IGNORE_INDEX
from data.images import concatenate_pictures
from modeling.user_error import UserError

TEXT_KEYS = ("input_ids", "attention_mask", "labels")
"""The text of a batch. Its other keys are pictures and videos, as they are processed."""
KEPT_LOGITS = "teacher_logits"
"""The teacher's logits [supervised tokens, vocab] of a sample, where they were kept."""


def pictures_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns a batch without its text."""
    return {key: value for key, value in batch.items() if key not in TEXT_KEYS}


class Collator:
    """Pads the tokens of samples from `encode` or `encode_prompt` and concatenates their pictures and videos.

    A call returns:
        input_ids and attention_mask: [B, S] int64.
        labels: [B, S] int64, where the samples have them.
        each key of the image processor: for LLaVA, pixel_values [pictures of the batch, 3, H, W] float32, in the order
            of the samples. Where pictures are cut into tiles it is [pictures, tiles, 3, H, W], filled up with zeros to
            the largest number of tiles. A batch without pictures has no such key. So it is with keys of videos.

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


class AllMediaInEveryBatch:
    """Collates like another collator, and gives a batch that lacks pictures, or videos, one more row that has some.

    Sharded training needs it. Every process must run the vision tower, the projector and the visual rows of the decoder
    alike, for pictures and for videos, or the others wait for it for ever. The rows have no label, so neither loss nor
    gradients change.

    Args:
        collator: makes batches of samples.
        fillers: encoded samples, as the dataset gives them. Together they have all that any sample is shown.
    """

    def __init__(self, collator: Collator, fillers: Sequence[dict[str, torch.Tensor]]):
        self._collator = collator
        self._fillers = [_unsupervised(filler) for filler in fillers]
        self._keys = [filler.keys() - {*TEXT_KEYS, KEPT_LOGITS} for filler in fillers]
        assert all(self._keys), "a filler has neither a picture nor a video"

    def __call__(self, samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        found = {key for sample in samples for key in sample}
        for filler, keys in zip(self._fillers, self._keys, strict=True):
            if not keys <= found:
                samples = [*samples, filler]
                found |= keys
        return self._collator(samples)


def _unsupervised(sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns a sample without its labels and the logits that are kept of it."""
    no_logits = {KEPT_LOGITS: sample[KEPT_LOGITS][:0]} if KEPT_LOGITS in sample else {}
    return {**sample, "labels": torch.full_like(sample["labels"], IGNORE_INDEX), **no_logits}


def predicts_answer(labels: torch.Tensor) -> torch.Tensor:
    """Returns the rows whose next token is supervised: labels [B, S] int64 -> [B, S] bool.

    This is the one place where labels are shifted against the rows that predict them.
    """
    return F.pad(labels[:, 1:] != IGNORE_INDEX, (0, 1), value=False)
