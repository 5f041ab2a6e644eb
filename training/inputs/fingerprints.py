"""Whether a file still has the content that it had. It is read again only if its time of change differs.

Large weights, tables and shards are sampled: their beginning, blocks at even distances, and their end. The names of
tensors, and what is where in a table, stand there. Training changes every block, and reading 50 GB at each start would
take minutes.
"""

import glob
import hashlib
from collections.abc import Iterable
from pathlib import Path

SAMPLED = 256 * 2**20
"""Size in bytes from which files are sampled."""
BLOCKS, BLOCK = 128, 2**20
"""Number of sampled blocks, and the size of one in bytes."""
WEIGHTS, TABLES = (".safetensors", ".bin"), (".parquet", ".arrow", ".tar")
OF_A_MODEL = (*WEIGHTS, ".json", ".model", ".txt", ".jinja", ".py")
"""Endings of the files in a model's folder that decide what the model is."""


def fingerprints(path: Path) -> dict[str, dict]:
    """Returns the fingerprint of each file that a path stands for. There is none of what does not exist.

    Returns:
        For each file its name and {"size", "mtime_ns", "sha256"}.
    """
    return {name: _fingerprint(file) for name, file in files_at(path).items()}


def files_at(path: Path) -> dict[str, Path]:
    """Returns the files that a path stands for, by their names from there on.

    Args:
        path: a file, whose name is "", a model's folder, a folder of data, or a pattern of files.
    """
    if path.is_file():
        return {"": path}
    if is_model(path):
        return {file.name: file for file in sorted(path.iterdir()) if file.suffix in OF_A_MODEL}
    found = [str(path)] if path.is_dir() else glob.glob(str(path), recursive=True)
    files = sorted(file for one in found for file in _files_below(Path(one)))
    return {str(file.relative_to(folder_of(path))): file for file in files}


def folder_of(path: Path) -> Path:
    """Returns where the names of files start from: the path, or the folder in which a pattern is looked for."""
    if path.exists():
        return path
    return next(folder for folder in (path, *path.parents) if not glob.has_magic(str(folder)))


def is_model(path: Path) -> bool:
    """Returns whether a path is a model's folder."""
    return (path / "config.json").is_file()


def _files_below(path: Path) -> Iterable[Path]:
    """Returns a file, or those in a folder of data, however deep. What is hidden is no data."""
    if not path.is_dir():
        return [path]
    files = (file for file in path.rglob("*") if file.is_file())
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]


def is_unchanged(path: Path, before: dict) -> bool:
    """Returns whether a file has the content that it had when its fingerprint was taken."""
    if not path.is_file() or path.stat().st_size != before["size"]:
        return False
    return path.stat().st_mtime_ns == before["mtime_ns"] or _sha256(path) == before["sha256"]


def _fingerprint(path: Path) -> dict:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    size, digest = path.stat().st_size, hashlib.sha256()
    sampled = size >= SAMPLED and path.suffix in (*WEIGHTS, *TABLES)
    places = ((size - BLOCK) * number // (BLOCKS - 1) for number in range(BLOCKS)) if sampled else range(0, size, BLOCK)
    with path.open("rb") as file:
        for place in places:
            file.seek(place)
            digest.update(file.read(BLOCK))
    return digest.hexdigest()
