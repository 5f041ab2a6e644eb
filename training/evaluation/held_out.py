"""Refuses questions, and pictures of questions, that are trained on or that plans are found on."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data.dataset import ConversationDataset
from modeling.user_error import UserError
from training.evaluation.questions import Asked
from training.inputs.fingerprints import fingerprints


def refuse_shared_files(asked: Sequence[Asked], files: Iterable[Path], role: str) -> None:
    """Raises UserError where a question is about one of these pictures or videos.

    They are the same if their files have the same name and the same content, in whatever folders they lie. Those within
    rows are not looked at: that would take a pass over all bytes of the data.

    Args:
        files: what the data of `role` show.
        role: what they are for.
    """
    held_out = {
        file: f"{part.benchmark.name}, question {question.id}"
        for part in asked
        for question in part.questions
        for file in (*question.images, *question.videos)
        if isinstance(file, Path)
    }
    named: dict[str, dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))  # by name and size
    for path in held_out:
        named[path.name][path.stat().st_size].append(path)
    for shown in files:
        if shown.name not in named or not shown.is_file():
            continue
        for path in named[shown.name].get(shown.stat().st_size, ()):
            if path.samefile(shown) or _sha256(path) == _sha256(shown):
                raise UserError(
                    f"data.evaluation: {held_out[path]} shows {path}, which data.{role} shows too ({shown}); "
                    "questions must be about what is held out"
                )


def refuse_shared_samples(held_out: ConversationDataset, dataset: ConversationDataset, role: str) -> None:
    """Raises UserError where a sample that is asked is one of a dataset's too, with the same id, texts and files.

    Args:
        held_out: the samples whose last questions are asked.
        dataset: the samples of `role`.
        role: what they are for.
    """
    shared = np.flatnonzero(np.isin(held_out.digests, dataset.digests))
    if len(shared):
        first = held_out.samples[int(shared[0])].id
        raise UserError(
            f"data.evaluation: {len(shared)} of {len(held_out)} samples are in data.{role} too, first {first!r}; "
            "questions must be held out"
        )


def _sha256(path: Path) -> str:
    return fingerprints(path)[""]["sha256"]
