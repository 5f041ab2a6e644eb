"""Every change that Python makes to the files below a folder, seen just before it is made.

An audit hook sees each opening of a file to write, each rename, removal, new folder and new mode. What libraries write
in C++ (safetensors, torch.save, Arrow) it does not see, but it sees the renames and markers by which such files count.
A hook stays for the rest of its process, so it belongs in a process of its own.
"""

import os
import sys
from collections.abc import Callable
from typing import NamedTuple

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Change(NamedTuple):
    """A change that is about to be made."""

    number: int
    """Number of the change in its process, from 1 on."""
    kind: str
    """Name of the audit event."""
    path: str
    """The file or folder; where it is renamed, what it becomes."""
    appends: bool
    """Whether a file is opened to write at its end."""


def watch(folder: str | os.PathLike, before: Callable[[Change], None]) -> None:
    """From now on calls `before` before each change below a folder. What it raises is raised where the change is made.

    Changes that `before` makes itself are not seen.
    """
    root = os.path.join(os.path.realpath(folder), "")
    number, inside = 0, False

    def hook(event: str, arguments: tuple) -> None:
        nonlocal number, inside
        if inside or event not in _PATHS:
            return
        inside = True  # what is looked up here raises events too
        try:
            for path, folder_descriptor in _PATHS[event](*arguments):
                absolute = _absolute(path, folder_descriptor)
                if absolute.startswith(root):
                    number += 1
                    appends = event == "open" and bool(arguments[2] & os.O_APPEND)
                    before(Change(number, event, absolute, appends))
                    break
        finally:
            inside = False

    sys.addaudithook(hook)


def _opened(path, mode, flags):
    return [(path, -1)] if flags & WRITING and not isinstance(path, int) else []


_PATHS: dict[str, Callable] = {
    "open": _opened,
    "os.rename": lambda source, target, of_source, of_target: [(target, of_target), (source, of_source)],
    "os.remove": lambda path, folder: [(path, folder)],
    "os.rmdir": lambda path, folder: [(path, folder)],
    "os.mkdir": lambda path, mode, folder: [(path, folder)],
    "os.chmod": lambda path, mode, folder: [(path, folder)] if not isinstance(path, int) else [],
    "os.truncate": lambda path, length: [(path, -1)] if not isinstance(path, int) else [],
    "os.link": lambda source, target, of_source, of_target: [(target, of_target)],
    "os.symlink": lambda source, target, folder: [(target, folder)],
}
"""Name of an event -> gives the paths that it changes, each with the descriptor of the folder that it starts from."""


def _absolute(path: str | bytes | os.PathLike, folder_descriptor: int) -> str:
    path = os.fsdecode(path)
    if folder_descriptor not in (-1, None) and not os.path.isabs(path):
        path = os.path.join(os.readlink(f"/proc/self/fd/{folder_descriptor}"), path)
    return os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(path))), os.path.basename(path))
