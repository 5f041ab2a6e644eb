"""How much disk the teacher's answers take, known before the teacher is asked."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedConfig, ProcessorMixin

from data.dataset import ConversationDataset
from data.media import READERS
from data.sample import MEDIA
from modeling.user_error import UserError

COPIES = 2
"""While the parts of all processes are joined, all is on the disk twice."""


def answers_size(
    dataset: ConversationDataset,
    processor: ProcessorMixin,
    config: PreTrainedConfig,
    visual: Sequence[int],
    itemsize: int,
) -> int:
    """Returns the bytes of the file that `write_teacher_answers` writes, but for what is small beside it.

    These are the logits of every supervised token and the features of every visual token.

    Args:
        processor: the dense model's.
        config: the dense model's.
        visual: ids of the tokens that stand for visual features.
        itemsize: bytes of one value.
    """
    features = 0
    for medium in MEDIA:
        for size, count in zip(*dataset.sizes(medium), strict=True):
            tokens = READERS[medium].tokens_at(tuple(size.tolist()), processor)
            features += int(count) * sum(int((tokens == token).sum()) for token in visual)
    supervised = int(dataset.supervised.sum(dtype=np.int64))
    text = config.text_config
    return itemsize * (supervised * text.vocab_size + features * text.hidden_size)


def refuse_too_many_answers(size: int, folder: Path) -> None:
    """Raises UserError if the answers do not fit on the disk of the run's folder."""
    free = shutil.disk_usage(folder).free
    if COPIES * size > free:
        raise UserError(
            f"distillation.keep_answers: the teacher's answers need {_gib(COPIES * size)} on the disk of {folder} "
            f"while they are written, and half of it then; it has {_gib(free)} left. Free some, or set it to false"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
