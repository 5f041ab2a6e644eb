"""Finds what others must not read: secrets, paths of the disks that a file was written on, and the name of its user.

Every text that is sent is looked through, and so are the heads of safetensors and the notes in pictures.
"""

import getpass
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from modeling.user_error import UserError

MOST_TEXT = 256 * 2**20
"""Largest text that is looked through, in bytes."""
MOST_HEADER = 100_000_000
"""Largest head of safetensors, in bytes, as the format says."""
SHARED_ACCOUNTS = ("root", "user", "admin", "ubuntu")
"""Names that tell of nobody. As words they stand in many a text."""
VOCABULARY = ("model.vocab", "model.merges", "added_tokens", "vocab", "merges")
"""Fields of a tokenizer's JSON that list its tokens. These are whatever the tokenizer was trained on."""
TOKENS = ("vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json")
"""Files that hold tokens alone."""
ABSOLUTE = re.compile(
    r"""(?:^|(?<=[\s"'`(=\[,<>:;|]))(?:(?:file://)?(?:/[\w.@+-]+){2,}|~[\w-]*/[\w.@+-]+|[A-Za-z]:\\[^\s"'`]+|\\\\\w+\\\w+)"""
)
"""A path from the root of a disk, a home or a share. A place on the web has a host in front."""

SECRET = re.compile(
    r"(?<!\w)(?:hf_[A-Za-z0-9]{30,}|gh[oprsu]_\w{36,}|github_pat_\w{22,}|glpat-[\w-]{20,}|sk-[\w-]{32,}|xox[abeprs]-[\w-]{10,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{35}|-----BEGIN [A-Z ]*PRIVATE KEY-----)"
)
"""Tokens of the Hub, GitHub, GitLab, OpenAI, Slack, Amazon and Google, and private keys."""


def refuse_private(files: Mapping[str, Path], own_names: Iterable[str] = ()) -> None:
    """Looks through the files.

    Args:
        files: path in the repository -> file.
        own_names: names that the files may hold, even if the user has one of them here.

    Raises:
        UserError: a text or a file's name holds a secret, a path of this machine or the user's name, a file is not what
            its ending says, or one is too large to be looked through.
    """
    private = _private_words(set(own_names))
    for name, path in files.items():
        try:
            texts = [("its name", name), *_texts(path)]
        except (ValueError, OSError, RecursionError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{name}: is not what its name says ({error})") from None
        for field, text in texts:
            secret = SECRET.search(text)
            if secret is not None:
                raise UserError(
                    f"{name}: {field}: got what looks like a secret, '{secret[0][:5]}...'; others must not read it, so "
                    "remove it, and replace it where it is valid"
                )
            found = ABSOLUTE.search(text) or private.search(text)
            if found is not None:
                raise UserError(
                    f"{name}: {field}: got {found[0]!r}, a path or a name of this machine; others must not read it, "
                    "so remove it"
                )


def _private_words(own_names: set[str]) -> re.Pattern:
    """Returns what finds the user's name, and the folders that are this machine's."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        user = ""
    names = [user] if len(user) > 2 and user not in {*own_names, *SHARED_ACCOUNTS} else []
    folders = {
        str(folder) for folder in (Path.home(), Path.cwd(), Path(tempfile.gettempdir())) if len(folder.parts) > 2
    }
    words = [rf"(?<![\w-]){re.escape(name)}(?![\w-])" for name in names] + [re.escape(folder) for folder in folders]
    return re.compile("|".join(sorted(words)) or r"(?!)")


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (where, text) of all that a reader may find in a file.

    Raises:
        ValueError: the file is not of the kind that its ending says, or it is too large.
    """
    if path.suffix == ".safetensors":
        yield from _fields(_header(path))
    elif path.suffix == ".png":
        with Image.open(path, formats=["PNG"]) as picture:
            picture.load()  # notes may stand behind the pixels
            yield from _fields({key: str(value) for key, value in picture.info.items()})
    elif path.name not in TOKENS:
        if path.stat().st_size > MOST_TEXT:
            raise ValueError(f"{path.stat().st_size:,} bytes, allowed: {MOST_TEXT:,} in a text")
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            yield from _fields(json.loads(text))
        else:
            yield from ((f"line {number}", line) for number, line in enumerate(text.splitlines(), start=1))


def _header(path: Path) -> dict:
    """Returns the head of safetensors: names and shapes of the tensors, and `__metadata__`."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(MOST_HEADER, path.stat().st_size):
            raise ValueError(f"a head of {length:,} bytes")
        return json.loads(file.read(length))


def _fields(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yields (dotted name, text) of every text in what was read from JSON. Keys are texts as well."""
    if place in VOCABULARY:
        return
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield place or key, key
            yield from _fields(child, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _fields(child, f"{place}.{index}")
