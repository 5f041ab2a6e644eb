"""A folder that is there whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Gives a folder beside `final` that takes its place at the end, or disappears when anything is raised."""
    final.parent.mkdir(parents=True, exist_ok=True)
    partial, replaced = (final.with_name(f".{final.name}.{state}") for state in ("partial", "replaced"))
    _remove(partial)  # left by a run that was killed
    partial.mkdir()
    try:
        yield partial
        for path in (*partial.iterdir(), partial):
            _to_disk(path)
    except BaseException:
        _remove(partial)
        raise
    _remove(replaced)
    if final.exists():
        final.rename(replaced)
    partial.rename(final)
    _to_disk(final.parent)
    _remove(replaced)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
