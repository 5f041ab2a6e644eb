"""A file that is there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a path to write to. What is written there becomes `path` at the end.

    Until then `path` is as it was. It stays so where anything is raised, and where the process is killed. The folder of
    `path` is made if it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        _to_disk(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _to_disk(path: Path) -> None:
    """A rename can outlive a power cut while the bytes it names do not, unless they are on the disk before it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
