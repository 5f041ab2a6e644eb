"""Whether a file still has the content that it had. It is read again only if its time of change differs.

Large weights are sampled: their beginning, where the names of tensors are, and blocks at even distances. Training
changes every block, and reading 50 GB at each start would take minutes.
"""

import hashlib
from pathlib import Path

SAMPLED = 256 * 2**20
"""Size in bytes from which weights are sampled."""
BLOCKS, BLOCK = 128, 2**20
"""Number of sampled blocks, and the size of one in bytes."""
WEIGHTS = (".safetensors", ".bin")
OF_A_MODEL = (*WEIGHTS, ".json", ".model", ".txt", ".jinja", ".py")
"""Endings of the files in a model's folder that decide what the model is."""


def fingerprints(path: Path) -> dict[str, dict]:
    """Returns the fingerprint of a file, or of each file of a model's folder. There is none of what does not exist.

    Returns:
        For each file its name and {"size", "mtime_ns", "sha256"}. The name of `path` itself is "".
    """
    if path.is_file():
        return {"": _fingerprint(path)}
    if not path.is_dir():
        return {}
    return {file.name: _fingerprint(file) for file in sorted(path.iterdir()) if file.suffix in OF_A_MODEL}


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
    sampled = size >= SAMPLED and path.suffix in WEIGHTS
    places = ((size - BLOCK) * number // (BLOCKS - 1) for number in range(BLOCKS)) if sampled else range(0, size, BLOCK)
    with path.open("rb") as file:
        for place in places:
            file.seek(place)
            digest.update(file.read(BLOCK))
    return digest.hexdigest()
