"""Reads pictures from files that others made, and processes them.

A picture must be of a sane size and shape, and be whole.
"""

import struct
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from transformers import ProcessorMixin

from data.pixels import as_rgb, upright_size
from data.sample import File
from modeling.user_error import UserError

# As many as a photograph of 64 megapixels has, which takes 192 MB once it is decoded to RGB.
MAX_PIXELS = 64_000_000
MAX_ASPECT = 200
"""The longer side of a picture may be so many times the shorter one. Processors that scale the shorter side to a fixed
length make hundreds of megabytes of a file of 200 bytes otherwise. Qwen2-VL's own processor has the same limit."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The formats of picture files that are read. Of PIL's others, some start programs and some end the process."""

# What PIL raises on broken files, depending on the format: its own errors, then those of the parsers beneath it.
_BROKEN_FILE = (
    OSError, SyntaxError, ValueError, RuntimeError, EOFError, struct.error, zlib.error,
    TypeError, LookupError, ArithmeticError, AttributeError, MemoryError,
)  # fmt: skip


def read_image_size(picture: File, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Returns (height, width) in pixels of a picture as it is shown. It reads the file's header and decodes nothing.

    Args:
        picture: a file, or the bytes of one that lie within a row.
        max_pixels: as many pixels as a picture may have.

    Raises:
        UserError: the file is not a picture, has more than `max_pixels` pixels, or is longer than `MAX_ASPECT` times
            its width.
    """
    with _open_checked(picture, max_pixels) as image:
        return upright_size(image)


def size_of_image(picture: File, processor: ProcessorMixin, max_pixels: int, decode: bool) -> tuple[int, ...]:
    """Returns (height, width) in pixels of a picture, which is decoded to find whether it is whole, or is not."""
    if not decode:
        return read_image_size(picture, max_pixels)
    image = open_image(picture, max_pixels)
    return image.height, image.width


def open_image(picture: File, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Returns the whole picture as RGB (`data.pixels.as_rgb`). The arguments are those of `read_image_size`.

    Raises:
        UserError: as `read_image_size`, before anything is decoded. Or the file is truncated or corrupt, or has no
            obvious colours.
    """
    with _open_checked(picture, max_pixels) as image:
        try:
            return as_rgb(image)
        except UserError as error:
            raise UserError(f"image {str(picture)!r} has no obvious colours: {error}") from None
        except _BROKEN_FILE as error:
            raise UserError(f"image {str(picture)!r} is truncated or corrupt ({error})") from error


def process_images(
    pictures: Sequence[File], processor: ProcessorMixin, max_pixels: int = MAX_PIXELS
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Opens pictures and processes them as the model takes them.

    Returns:
        What the processor gives beside tokens: for LLaVA, pixel_values [num_images, 3, H, W] float32. It is empty
            without pictures.
        The tokens [N] int64 of each picture, which its placeholder in a text stands for.

    Raises:
        UserError: as `open_image`, or the processor refuses a picture of this size.
    """
    processed = [_process(open_image(picture, max_pixels), processor) for picture in pictures]
    names = processed[0][0] if processed else {}
    inputs = {name: concatenate_pictures([tensors[name] for tensors, _ in processed]) for name in names}
    return inputs, [tokens for _, tokens in processed]


def concatenate_pictures(pictures: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns tensors of pictures one after another, along the first dimension.

    Tiles [pictures, tiles, 3, H, W] are first filled up with zeros to the largest number of tiles.
    """
    if pictures[0].dim() == 5:
        num_tiles = max(picture.shape[1] for picture in pictures)
        pictures = [F.pad(picture, (0, 0, 0, 0, 0, 0, 0, num_tiles - picture.shape[1])) for picture in pictures]
    return torch.cat(list(pictures))


def tokens_at(size: tuple[int, ...], processor: ProcessorMixin) -> torch.Tensor:
    """Returns the tokens [N] int64 that the placeholder of a picture of `size`, (height, width) in pixels, stands for.

    No picture is processed. The processor's own arithmetic gives their number. `check_tokens_at` compares the two.

    Raises:
        UserError: the processor refuses a picture of this size, would scale it to more than `MAX_PIXELS` pixels, or has
            no such arithmetic.
    """
    _check_scaled(size, processor)
    kind = type(processor).__name__
    try:
        (count,) = processor._get_num_multimodal_tokens(image_sizes=[size]).num_image_tokens
    except ValueError as error:
        raise _refused(size, processor, error) from error
    except (AttributeError, TypeError) as error:  # a field that this arithmetic needs is absent or null
        raise UserError(f"{kind} is not supported: it cannot tell a picture's tokens by its size ({error})") from error
    before, after = _tokens_around(processor)
    visual = before.new_full((count - len(before) - len(after),), processor.image_token_id)
    return torch.cat([before, visual, after])


def check_tokens_at(sizes: Iterable[tuple[int, ...]], processor: ProcessorMixin) -> None:
    """Processes blank pictures of a few of `sizes`: the fewest and the most pixels, the narrowest and the widest.

    Raises:
        UserError: the processor makes other tokens of one of them than `tokens_at` says, or as `tokens_at`.
    """
    sizes = sorted(set(sizes))
    if not sizes:
        return
    by_area, by_shape = (lambda size: size[0] * size[1]), (lambda size: size[0] / size[1])
    for size in {choose(sizes, key=key) for choose in (min, max) for key in (by_area, by_shape)}:
        height, width = size
        counted, (_, made) = tokens_at(size, processor), _process(Image.new("RGB", (width, height)), processor)
        if not torch.equal(counted, made):
            raise UserError(
                f"{type(processor).__name__} is not supported: it makes {len(made)} tokens of a picture of "
                f"{width} x {height} pixels, but counts {len(counted)}"
            )


@lru_cache(maxsize=8)
def _tokens_around(processor: ProcessorMixin) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the tokens, both int64, that a processor puts before and after the visual tokens of every picture."""
    _, tokens = _process(Image.new("RGB", (32, 32)), processor)
    visual = (tokens == processor.image_token_id).nonzero()
    return tokens[: visual[0]], tokens[visual[-1] + 1 :]


def _check_scaled(size: tuple[int, ...], processor: ProcessorMixin) -> None:
    """Raises UserError where a processor would scale a picture of this size to more than `MAX_PIXELS` pixels.

    One that scales the shorter side to a fixed length, and crops the longer one only then, makes gigabytes of a line.
    One that keeps the resolution, within a least and a most number of pixels, does so where the least is large.
    """
    limits, (height, width) = dict(processor.image_processor.size), size
    shortest, longest = limits.get("shortest_edge"), limits.get("longest_edge")
    if shortest is None:
        return
    whole = shortest**2 * max(size) // min(size)
    # Beside a `longest_edge` both are, whatever their names say, numbers of pixels in the whole picture.
    pixels = whole if longest is None else min(max(height * width, shortest), longest)
    if pixels > MAX_PIXELS:
        raise UserError(
            f"a picture of {width} x {height} pixels is refused: {type(processor.image_processor).__name__} would "
            f"scale it to {pixels} pixels; at most {MAX_PIXELS} pixels"
        )


def _process(image: Image.Image, processor: ProcessorMixin) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Returns a processed picture and its tokens.

    The whole processor is called, with a placeholder as the text. It has settings of its own for pictures, and may put
    tokens around theirs.
    """
    size = (image.height, image.width)
    _check_scaled(size, processor)
    try:
        encoded = processor(text=processor.image_token, images=[image], add_special_tokens=False, return_tensors="pt")
    except ValueError as error:
        raise _refused(size, processor, error) from error
    return {name: encoded[name] for name in processor.image_processor.model_input_names}, encoded["input_ids"][0]


def _refused(size: tuple[int, ...], processor: ProcessorMixin, error: ValueError) -> UserError:
    """Returns what is said of a picture of a size that the processor refuses."""
    kind = type(processor.image_processor).__name__
    return UserError(f"a picture of {size[1]} x {size[0]} pixels is refused by {kind} ({error})")


def _open_checked(picture: File, max_pixels: int) -> Image.Image:
    """Returns a picture of at most `max_pixels` pixels and a sane shape, opened and not yet decoded."""
    name = str(picture)
    try:
        image = Image.open(picture if isinstance(picture, Path) else picture.open(), "r", FORMATS)
    except Image.DecompressionBombError as error:
        raise UserError(f"image {name!r} is too large ({error}); at most {max_pixels} pixels") from error
    except UnidentifiedImageError as error:
        raise UserError(f"image {name!r} is not a picture of a format that is read ({', '.join(FORMATS)})") from error
    except _BROKEN_FILE as error:
        raise UserError(f"image {name!r} cannot be read ({error})") from error
    if image.width * image.height > max_pixels:
        image.close()
        raise UserError(
            f"image {name!r} is too large ({image.width} x {image.height} pixels); at most {max_pixels} pixels"
        )
    if max(image.size) > MAX_ASPECT * min(image.size):
        image.close()
        raise UserError(
            f"image {name!r} is too long ({image.width} x {image.height} pixels); "
            f"at most {MAX_ASPECT} times as long as wide"
        )
    return image
