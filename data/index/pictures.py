"""Looks at the pictures of an index: their size, the tokens that stand for them, and what is wrong with them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Features, Value
from transformers import ProcessorMixin

from data.images import open_image, read_image_size, tokens_at
from data.index.worker import as_table, begin_worker
from data.sample import EmbeddedPicture
from modeling.user_error import UserError

NO_SIZE = (0, 0)
"""Size of a picture that cannot be used."""

LOOKED_AT = Features(
    {
        "height": Value("int32"),
        "width": Value("int32"),
        "num_tokens": Value("int32"),
        # What is wrong with the picture, null if nothing is.
        "problem": Value("string"),
    }
)


class Look:
    """Looks at pictures: their size, the tokens that stand for them, and what is wrong with them."""

    def __init__(self, processor: ProcessorMixin, max_pixels: int, decode: bool):
        self._processor, self._max_pixels, self._decode = processor, max_pixels, decode
        self._num_tokens: dict[tuple[int, int], int | UserError] = {}

    def __call__(self, batch: dict[str, list[str]], numbers: list[int]) -> pa.Table:
        """Looks at a batch of paths."""
        begin_worker()
        return as_table([self.at(Path(name)) for name in batch["picture"]], LOOKED_AT)

    def at(self, picture: Path | EmbeddedPicture) -> dict[str, Any]:
        """Looks at one picture. It is opened once."""
        try:
            if self._decode:
                image = open_image(picture, self._max_pixels)
                size = image.height, image.width
            else:
                size = read_image_size(picture, self._max_pixels)
            return {"height": size[0], "width": size[1], "num_tokens": self._tokens_at(size), "problem": None}
        except UserError as error:
            height, width = NO_SIZE
            return {"height": height, "width": width, "num_tokens": 0, "problem": str(error)}

    def _tokens_at(self, size: tuple[int, int]) -> int:
        if size not in self._num_tokens:
            try:
                self._num_tokens[size] = len(tokens_at(size, self._processor))
            except UserError as error:
                self._num_tokens[size] = error
        found = self._num_tokens[size]
        if isinstance(found, UserError):
            raise found
        return found
