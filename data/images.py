"""Pictures from files that others made: inside their root, of a sane size, whole."""

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from transformers import ProcessorMixin

from modeling.user_error import UserError

# A 64-megapixel photograph; 192 MB once decoded to RGB.
MAX_PIXELS = 64_000_000

# What PIL raises on broken files, by format: its own errors, then those of the parsers beneath (PNG chunks, TIFF tags).
_BROKEN_FILE = (OSError, SyntaxError, UserError, EOFError, struct.error, zlib.error)


def find_image(image_root: Path, name: str) -> Path:
    """The real path of picture `name` under `image_root`.

    Raises:
        UserError: the file is missing, or lies outside the root (by `..`, an absolute path or a symbolic link).
    """
    root = os.path.realpath(image_root)
    path = os.path.realpath(os.path.join(root, name))
    if path != root and not path.startswith(os.path.join(root, "")):
        raise UserError(f"image {name!r} lies outside its root {str(image_root)!r} (at {path!r})")
    if not os.path.isfile(path):
        raise UserError(f"image {name!r} is not a file under {str(image_root)!r}")
    return Path(path)


def read_image_size(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) in pixels from the file's header; nothing is decoded.

    Raises:
        UserError: not a picture, or larger than `max_pixels`.
    """
    with _open_checked(path, max_pixels) as image:
        return image.height, image.width


def open_image(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The whole picture as RGB.

    Raises:
        UserError: not a picture, larger than `max_pixels` (known from the header, before decoding), truncated
            or corrupt.
    """
    with _open_checked(path, max_pixels) as image:
        try:
            return image.convert("RGB")
        except _BROKEN_FILE as error:
            raise UserError(f"image {str(path)!r} is truncated or corrupt ({error})") from error


def process_images(
    paths: Sequence[Path], processor: ProcessorMixin, max_pixels: int = MAX_PIXELS
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Pictures as the model takes them.

    Returns:
        What the processor gives beside tokens, for LLaVA pixel_values [num_images, 3, H, W] float32 (empty without pictures),
        and the tokens [N] int64 that each picture's placeholder stands for in a text.

    Raises:
        UserError: as `open_image`.
    """
    processed = [_process(open_image(path, max_pixels), processor) for path in paths]
    pictures = {name: strung([each[name] for each, _ in processed]) for name in (processed[0][0] if processed else {})}
    return pictures, [tokens for _, tokens in processed]


def strung(pictures: Sequence[torch.Tensor]) -> torch.Tensor:
    """Pictures one after another; tiles [pictures, tiles, 3, H, W] are filled up with zeros to the most that one has."""
    if pictures[0].dim() == 5:
        most = max(picture.shape[1] for picture in pictures)
        pictures = [F.pad(picture, (0, 0, 0, 0, 0, 0, 0, most - picture.shape[1])) for picture in pictures]
    return torch.cat(list(pictures))


def tokens_at(size: tuple[int, int], processor: ProcessorMixin) -> torch.Tensor:
    """The tokens [N] int64 for a picture of (height, width) pixels; processors look at nothing but the size."""
    height, width = size
    return _process(Image.new("RGB", (width, height)), processor)[1]


def _process(image: Image.Image, processor: ProcessorMixin) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Of a text that is a placeholder alone: the processor has settings of its own for pictures, and tokens around them."""
    done = processor(text=processor.image_token, images=[image], add_special_tokens=False, return_tensors="pt")
    return {name: done[name] for name in processor.image_processor.model_input_names}, done["input_ids"][0]


def _open_checked(path: Path, max_pixels: int) -> Image.Image:
    """An opened, not yet decoded picture of at most `max_pixels`."""
    try:
        image = Image.open(path)
    except Image.DecompressionBombError as error:
        raise UserError(f"image {str(path)!r} is too large ({error}); at most {max_pixels} pixels") from error
    except UnidentifiedImageError as error:
        raise UserError(f"image {str(path)!r} is not a picture that PIL can read") from error
    except _BROKEN_FILE as error:
        raise UserError(f"image {str(path)!r} cannot be read ({error})") from error
    if image.width * image.height > max_pixels:
        image.close()
        raise UserError(
            f"image {str(path)!r} is too large ({image.width} x {image.height} pixels); at most {max_pixels} pixels"
        )
    return image
