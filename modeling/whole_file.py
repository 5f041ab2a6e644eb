"""A file that is there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a path to write to. What is written there becomes `path` at the end.

    Until then `path` is as it was. It stays so where anything is raised, and where the process is killed. The folder of
    `path` is made if it is missing. An OSError names `path` if it names no other file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        _to_disk(partial)
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # of a disk that is full the system names no file
        raise


def _to_disk(path: Path) -> None:
    """A rename can outlive a power cut while the bytes it names do not, unless they are on the disk before it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
