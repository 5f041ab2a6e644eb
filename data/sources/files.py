"""Finds the files that rows name, and none outside their root folder."""

import os
from pathlib import Path

from data.sample import Medium
from modeling.user_error import UserError


def find_file(folder: Path, name: str, medium: Medium) -> Path:
    """Returns the real path of a picture or a video under a folder.

    Args:
        folder: the root folder. Nothing outside it is read.
        name: the path from there, as a row gives it.
        medium: what messages call the file.

    Raises:
        UserError: the name cannot be that of a file, the file is missing, or it lies outside the root (by `..`, an
            absolute path or a symbolic link).
    """
    root = os.path.realpath(folder)
    try:
        path = os.path.realpath(os.path.join(root, name))
    except ValueError as error:  # a null byte, or half a surrogate pair
        raise UserError(f"{medium} {name!r} cannot be the name of a file ({error})") from error
    if path != root and not path.startswith(os.path.join(root, "")):
        raise UserError(f"{medium} {name!r} lies outside its root {str(folder)!r} (at {path!r})")
    if not os.path.isfile(path):
        raise UserError(f"{medium} {name!r} is not a file under {str(folder)!r}")
    return Path(path)
