"""Whether the pictures and videos of a run's data still have the content that they had when the data was read.

They may be hundreds of thousands. So of each its size and time of change are compared, and if only its time differs, a
hash of its two ends. The end of a PNG has a checksum of all its pixels, and a JPEG that is saved anew has another size.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Value

from modeling.whole_file import whole_file

END = 4096
"""Bytes at each end of a file that its hash covers."""
THREADS = 16
"""Files that are looked at together. On a shared disk each look waits for an answer."""
CONTENT = Features({"bytes": Value("int64"), "mtime_ns": Value("int64"), "ends": Value("binary")})
"""What is compared of a file: its size, when it was changed last, and the hash of its ends."""


def content_of(stream: BinaryIO) -> dict[str, Any]:
    """Returns `CONTENT` of an open file."""
    stat = os.fstat(stream.fileno())
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "ends": _ends(stream, stat.st_size)}


def record(files: Sequence[Path], path: Path) -> None:
    """Writes `CONTENT` of files, in their order, to a parquet file."""
    with ThreadPoolExecutor(THREADS) as pool:
        contents = list(pool.map(_content_at, files))
    with whole_file(path) as partial:
        pq.write_table(pa.Table.from_pylist(contents, CONTENT.arrow_schema), partial)


def first_changed(files: Sequence[Path], before: pa.Table) -> Path | None:
    """Returns the first of the files that has another content than before, or is missing; None if none has.

    Args:
        files: the files, perhaps in another folder than they were.
        before: their `CONTENT`, in their order.
    """
    columns = [before[name].to_pylist() for name in CONTENT]
    with ThreadPoolExecutor(THREADS) as pool:
        is_same = pool.map(_is_same, files, *columns)
        return next((file for file, same in zip(files, is_same, strict=True) if not same), None)


def _content_at(file: Path) -> dict[str, Any]:
    with file.open("rb", buffering=0) as stream:
        return content_of(stream)


def _is_same(file: Path, size: int, mtime_ns: int, ends: bytes) -> bool:
    try:
        stat = file.stat()
    except FileNotFoundError:
        return False
    return stat.st_size == size and (stat.st_mtime_ns == mtime_ns or _content_at(file)["ends"] == ends)


def _ends(stream: BinaryIO, size: int) -> bytes:
    """Returns a hash of the first and the last bytes of a file."""
    digest = hashlib.blake2b(stream.read(END), digest_size=16)
    stream.seek(max(0, size - END), os.SEEK_SET)
    digest.update(stream.read(END))
    return digest.digest()
