"""A folder that is there whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

READABLE = 0o644
"""Mode of the files: who may read a shared disk may load a checkpoint from it. safetensors lets the owner alone."""


@contextlib.contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Yields an empty folder beside `final`. What is written there becomes `final` at the end.

    All may read its files. Until then `final` is as it was. Where anything is raised it stays so, and the new folder
    disappears. A folder that stands at `final` is replaced.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    partial, replaced = (final.with_name(f".{final.name}.{state}") for state in ("partial", "replaced"))
    _remove(partial)  # a run that was killed may have left it
    partial.mkdir()
    try:
        yield partial
        for path in (*partial.iterdir(), partial):
            if path.is_file():
                path.chmod(READABLE)
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


def check_writable(final: Path) -> None:
    """Raises OSError where `whole_folder` could not write `final`. The folders above it are made."""
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{final.name}.", dir=final.parent):
        pass


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _to_disk(path: Path) -> None:
    """A rename can outlive a power cut while the bytes it names do not, unless they are on the disk before it."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
