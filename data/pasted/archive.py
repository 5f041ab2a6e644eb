"""The files within a package, read into memory one after another. Nothing is written, and no link is followed."""

import re
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from modeling.user_error import UserError

MOST_BYTES = 256 * 2**20
"""Of one file within a package."""


def members(path: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of each file within a package whose name fits a pattern, in the package's order.

    Links, devices and folders are passed over.

    Args:
        path: a wheel (`.whl`), a tarball (`.tgz`) or a Debian package (`.deb`, which needs `dpkg-deb`).
        pattern: regular expression that the whole name fits, such as `package/assets/.*\\.webp`.

    Raises:
        UserError: the package is damaged, a file in it is larger than MOST_BYTES, or `dpkg-deb` is missing.
    """
    wanted = re.compile(pattern)
    try:
        if path.suffix == ".whl":
            yield from _zipped(path, wanted)
        elif path.suffix == ".tgz":
            with tarfile.open(path, mode="r|gz") as tar:
                yield from _tarred(path, tar, wanted)
        else:
            yield from _debian(path, wanted)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise UserError(f"{path}: is damaged, or cannot be read ({error})") from error


def _zipped(path: Path, wanted: re.Pattern) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir() and wanted.fullmatch(info.filename):
                _check_size(path, info.filename, info.file_size)
                yield info.filename, archive.read(info)


def _tarred(path: Path, tar: tarfile.TarFile, wanted: re.Pattern) -> Iterator[tuple[str, bytes]]:
    for info in tar:
        name = info.name.removeprefix("./")
        if info.isreg() and wanted.fullmatch(name):
            _check_size(path, name, info.size)
            file = tar.extractfile(info)
            assert file is not None
            yield name, file.read()


def _debian(path: Path, wanted: re.Pattern) -> Iterator[tuple[str, bytes]]:
    try:
        process = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(path)], stdout=subprocess.PIPE)
    except FileNotFoundError:
        raise UserError(f"{path}: `dpkg-deb` is not installed, which reads it") from None
    with process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            yield from _tarred(path, tar, wanted)


def _check_size(path: Path, name: str, size: int) -> None:
    if size > MOST_BYTES:
        raise UserError(f"{path}: {name} has {size:,} bytes, at most {MOST_BYTES:,} are allowed")
