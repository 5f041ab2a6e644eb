"""Files of a run: written completely or not at all, and named where they are damaged or cannot be written.

What the file system refuses is an OSError that names its file. Command lines print it as one line (training/cli.py).
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import yaml

from modeling.user_error import UserError
from modeling.whole_file import whole_file

PUT_BACK = "put back a copy of it, or begin again with --restart"
"""What can be done about a damaged file that cannot be made again alone."""
DAMAGE = (
    *(ValueError, LookupError, TypeError, AttributeError, EOFError, RuntimeError),
    *(UnpicklingError, yaml.YAMLError),
)
"""What the readers of JSON, YAML, Arrow and torch raise where a file is damaged."""
NO_ROOM = 2**20
"""A disk with fewer bytes left is full."""
OF_WRITING = ("PytorchStreamWriter", "inline_container", "iostream error")
"""What torch says where it could not write a file."""
CLOSED = "I/O operation on closed file"


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text. If the process is killed meanwhile, `path` is as it was before."""
    with whole_file(path) as file:
        file.write_text(text, encoding="utf-8")


def append_text(path: Path, text: str) -> None:
    """Writes UTF-8 text at the end of a file. If the process is killed meanwhile, a part of it may stand there."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON. If the process is killed meanwhile, `path` is as it was before."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, mend: str = PUT_BACK) -> Any:
    """Returns the content of a JSON file.

    Args:
        mend: as for `reading`.

    Raises:
        UserError: the file is damaged.
    """
    with reading(path, mend):
        return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def reading(path: Path, mend: str) -> Iterator[None]:
    """Inside, what a reader says of a damaged file becomes a UserError that names it and says what can be done.

    Args:
        path: the file, or the folder, that is read inside.
        mend: what a user can do, such as "delete it".
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # torch looks before the file's beginning; what has no number is Arrow's, safetensors' or transformers' own.
        of_content = isinstance(error, OSError) and error.errno in (errno.EINVAL, None)
        if not (isinstance(error, DAMAGE) or _is_of_safetensors(error) or of_content):
            raise
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path}: is damaged ({said}); {mend}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, what a library says of a file that cannot be written becomes an OSError that names it.

    Args:
        path: the file, or the folder, that is written inside.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
    except Exception as error:
        number = _number_of(error, path)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _number_of(error: Exception, path: Path) -> int | None:
    """Returns the number of the file system's error that a library's error tells of; None if it tells of another."""
    if _is_of_safetensors(error) and (found := re.search(r"os error (\d+)", str(error))):
        return int(found.group(1))
    if isinstance(error, RuntimeError):  # torch does not say why it could not write
        if _is_full(path):
            return errno.ENOSPC
        return errno.EIO if any(word in str(error) for word in OF_WRITING) else None
    if isinstance(error, ValueError) and CLOSED in str(error):  # datasets closes a file again that it could not write
        return errno.ENOSPC if _is_full(path) else None
    return None


def _is_full(path: Path) -> bool:
    folder = next(one for one in (path, *path.parents) if one.exists())
    return shutil.disk_usage(folder).free < NO_ROOM


def _is_of_safetensors(error: Exception) -> bool:
    return type(error).__name__ == "SafetensorError"
