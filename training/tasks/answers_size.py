"""How much disk the teacher's answers take, known before the teacher is asked."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedConfig

from data.collator import predicts_answer
from data.dataset import ConversationDataset
from modeling.user_error import UserError

COPIES = 2
"""While the parts of all processes are joined, all is on the disk twice."""


def answers_size(dataset: ConversationDataset, config: PreTrainedConfig, visual: Sequence[int], itemsize: int) -> int:
    """Returns the bytes of the file that `write_teacher_answers` writes, but for what is small beside it.

    These are the logits of every supervised token and the features of every visual token.

    Args:
        config: the dense model's.
        visual: ids of the tokens that stand for visual features.
        itemsize: bytes of one value.
    """
    supervised = features = 0
    for index in range(len(dataset)):
        tokens = dataset.tokens(index)
        supervised += int(predicts_answer(tokens["labels"][None]).sum())
        features += sum(int((tokens["input_ids"] == token).sum()) for token in visual)
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
