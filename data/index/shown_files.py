"""Whether the pictures and videos of a run's data still have the content that they had when the data was read.

They may be hundreds of thousands. So of each its size and time of change are compared, and if only its time differs, a
hash of its two ends. The end of a PNG has a checksum of all its pixels, and a JPEG that is saved anew has another size.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from modeling.whole_file import whole_file

END = 4096
"""Bytes at each end of a file that its hash covers."""
THREADS = 16
"""Files that are looked at together. On a shared disk each look waits for an answer."""
COLUMNS = pa.schema({"size": pa.int64(), "mtime_ns": pa.int64(), "ends": pa.binary(16)})


def record(files: Sequence[Path], path: Path) -> None:
    """Writes what `first_changed` compares, in the order of the files, to a parquet file."""
    with ThreadPoolExecutor(THREADS) as pool:
        rows = list(pool.map(_row, files))
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), COLUMNS, strict=False)]
    table = pa.table(columns, schema=COLUMNS) if rows else COLUMNS.empty_table()
    with whole_file(path) as partial:
        pq.write_table(table, partial)


def first_changed(files: Sequence[Path], path: Path) -> Path | None:
    """Returns the first of the files that has another content than at `record`, or is missing; None if none has.

    Args:
        files: the same ones in the same order, perhaps in another folder.
        path: what `record` wrote.
    """
    before = pq.read_table(path, schema=COLUMNS).to_pydict()
    with ThreadPoolExecutor(THREADS) as pool:
        is_same = pool.map(_is_same, files, *before.values())
        return next((file for file, same in zip(files, is_same, strict=True) if not same), None)


def _row(file: Path) -> tuple[int, int, bytes]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns, _ends(file, stat.st_size)


def _is_same(file: Path, size: int, mtime_ns: int, ends: bytes) -> bool:
    try:
        stat = file.stat()
    except FileNotFoundError:
        return False
    return stat.st_size == size and (stat.st_mtime_ns == mtime_ns or _ends(file, size) == ends)


def _ends(file: Path, size: int) -> bytes:
    """Returns a hash of the first and the last bytes of a file."""
    with file.open("rb", buffering=0) as opened:
        digest = hashlib.blake2b(opened.read(END), digest_size=16)
        opened.seek(max(0, size - END), os.SEEK_SET)
        digest.update(opened.read(END))
    return digest.digest()
