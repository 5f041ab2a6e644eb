"""Refuses questions about pictures that are trained on, or that plans are found on."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from modeling.user_error import UserError
from training.evaluation.questions import Asked


def refuse_shared_pictures(asked: Sequence[Asked], pictures: Iterable[Path], role: str) -> None:
    """Raises UserError where a question is about one of these pictures.

    Pictures are the same if their files have the same name and the same content, in whatever folders they lie.
    Pictures within rows are not looked at: that would take a pass over all bytes of the data.

    Args:
        pictures: files that the data of `role` show.
        role: what they are for.
    """
    held_out = {
        image: f"{part.benchmark.name}, question {question.id}"
        for part in asked
        for question in part.questions
        for image in question.images
        if isinstance(image, Path)
    }
    named: dict[str, dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))  # by name and size
    for path in held_out:
        named[path.name][path.stat().st_size].append(path)
    for picture in pictures:
        if picture.name not in named or not picture.is_file():
            continue
        for path in named[picture.name].get(picture.stat().st_size, ()):
            if path.samefile(picture) or _digest(path) == _digest(picture):
                raise UserError(
                    f"data.evaluation: {held_out[path]} shows {path}, which data.{role} shows too ({picture}); "
                    "questions must be about pictures that are held out"
                )


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
