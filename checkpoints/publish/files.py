"""Which files of a checkpoint's folder are published."""

import os
from pathlib import Path, PurePosixPath

from modeling.user_error import UserError

KINDS = (".safetensors", ".json", ".jinja", ".txt", ".model", ".py", ".md", ".yaml", ".png")
"""Endings of the files that are published. A file of another kind is refused: pickles run code when they are read."""
NAMES = ("LICENSE", "NOTICE")
"""Files without an ending that are published."""
MOST_FILES = 10_000


def files_to_send(folder: Path) -> dict[str, Path]:
    """Returns the files of a checkpoint by their paths in the repository, sorted.

    Raises:
        UserError: there is a file of another kind, a link, a hidden file or folder, a name that cannot be printed, or
            something that cannot be read.
    """
    found: dict[str, Path] = {}

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})")

    for parent, folders, names in os.walk(folder, onerror=refuse):
        for name in (*folders, *names):
            path = Path(parent, name)
            if path.is_symlink():
                raise UserError(f"{path}: is a link, allowed: files of the checkpoint's own")
            if name.startswith(".") or not name.isprintable():  # the Hub's client leaves out .git and .cache
                raise UserError(f"{parent}: got {name!r}, allowed: names that can be printed and are not hidden")
            if name in names:
                found[PurePosixPath(path.relative_to(folder)).as_posix()] = path
                _check(path)
        if len(found) > MOST_FILES:
            raise UserError(f"{folder}: holds more than {MOST_FILES:,} files, which no checkpoint does")
    return dict(sorted(found.items()))


def _check(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: is no ordinary file")
    if path.suffix not in KINDS and path.name not in NAMES:
        raise UserError(
            f"{path}: is not of a checkpoint, allowed: {', '.join((*KINDS, *NAMES))}; weights are safetensors alone"
        )
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: cannot be read")
