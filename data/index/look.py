"""Looks at the pictures and videos of an index: their size, the tokens that stand for them, and what is wrong.

Of a file of its own it also says by what a change is seen later (data/index/shown_files.py).
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Features, Value
from transformers import ProcessorMixin

from data.index.shown_files import CONTENT, content_of
from data.index.worker import as_table, begin_worker
from data.media import READERS, Size
from data.sample import File, Medium, OpenedFile
from modeling.user_error import UserError

LOOKED_AT = Features(
    {
        # How many frames of a video are seen. A picture has none, and what cannot be used has no size at all.
        "frames": Value("int32"),
        "height": Value("int32"),
        "width": Value("int32"),
        "num_tokens": Value("int32"),
        # What is wrong with the file, null if nothing is.
        "problem": Value("string"),
        # What is compared of the file at later starts, null for an embedded one.
        **CONTENT,
    }
)


class Look:
    """Looks at files of one medium."""

    def __init__(self, medium: Medium, processor: ProcessorMixin, max_pixels: int, decode: bool):
        self._reader, self._processor = READERS[medium], processor
        self._max_pixels, self._decode = max_pixels, decode
        self._num_tokens: dict[Size, int | UserError] = {}

    def __call__(self, batch: dict[str, list[str]], numbers: list[int]) -> pa.Table:
        """Looks at a batch of paths."""
        begin_worker()
        return as_table([self._at_path(Path(name)) for name in batch["file"]], LOOKED_AT)

    def _at_path(self, path: Path) -> dict[str, Any]:
        """Looks at a file of its own. It is opened once."""
        try:
            with path.open("rb") as stream:
                content = content_of(stream)
                stream.seek(0)
                return self.at(OpenedFile(stream, str(path))) | content
        except OSError:
            return self.at(path)  # says what is wrong with it

    def at(self, file: File) -> dict[str, Any]:
        """Looks at a file that lies within its row, or is open."""
        found: dict[str, Any] = dict.fromkeys(LOOKED_AT)
        found |= {"frames": 0, "height": 0, "width": 0, "num_tokens": 0}
        try:
            size = self._reader.size_of(file, self._processor, self._max_pixels, self._decode)
            found["num_tokens"] = self._tokens_at(size)
        except UserError as error:
            return found | {"problem": str(error)}
        return found | dict(zip(self._reader.sides, size, strict=True))

    def _tokens_at(self, size: Size) -> int:
        if size not in self._num_tokens:
            try:
                self._num_tokens[size] = len(self._reader.tokens_at(size, self._processor))
            except UserError as error:
                self._num_tokens[size] = error
        found = self._num_tokens[size]
        if isinstance(found, UserError):
            raise found
        return found
