"""Finds the files that rows name, and none outside their root folder."""

import os
from functools import lru_cache
from pathlib import Path

from data.sample import Medium
from modeling.user_error import UserError


@lru_cache(maxsize=4_096)
def find_file(folder: Path, name: str, medium: Medium) -> Path:
    """Returns the real path of a picture or a video under a folder. Neighbouring rows often show the same one.

    Args:
        folder: the root folder. Nothing outside it is read.
        name: the path from there, as a row gives it.
        medium: what messages call the file.

    Raises:
        UserError: the name cannot be that of a file, the file is missing, or it lies outside the root (by `..`, an
            absolute path or a symbolic link).
    """
    root = _real_folder(str(folder))
    try:
        path = _real_path(os.path.join(root, name))
        path.encode()
    except ValueError as error:  # a null byte, half a surrogate pair, or bytes that are no text
        raise UserError(f"{medium} {name!r} cannot be the name of a file ({error})") from error
    if path != root and not path.startswith(os.path.join(root, "")):
        raise UserError(f"{medium} {name!r} lies outside its root {str(folder)!r} (at {path!r})")
    if not os.path.isfile(path):
        raise UserError(f"{medium} {name!r} is not a file under {str(folder)!r}")
    return Path(path)


def _real_path(path: str) -> str:
    """Returns what `os.path.realpath` does. Of files in one folder, that folder is looked up once."""
    above, name = os.path.split(path)
    if name in ("", os.curdir, os.pardir):
        return os.path.realpath(path)
    path = os.path.join(_real_folder(above), name)
    return os.path.realpath(path) if os.path.islink(path) else path


@lru_cache(maxsize=4_096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)
