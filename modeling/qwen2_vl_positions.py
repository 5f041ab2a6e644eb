"""Positions of Qwen2-VL's rows, and the grids of its pictures and videos. All is found on the host.

Positions of text are counted on from the greatest before them. Those of a picture are its rows and columns.

Shapes: B batch, S rows of this forward.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from .sparse_multimodal import visual_runs
from .user_error import UserError
from .visual_cache import FirstCacheLayer
from .visual_layout import Images

Sizes: TypeAlias = Sequence[torch.Tensor | None]
"""Of pictures and of videos, each [number, 3] long: frames, rows and columns of patches. None: there are none."""

NAMES = ("image_grid_thw", "video_grid_thw")
"""The inputs that are such sizes."""


def prompt_positions(
    stock_positions: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    kinds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    sizes: Sizes,
) -> torch.Tensor:
    """Returns the positions [3, B, S] long, time, row and column, of a prompt whose first row is at 0.

    Args:
        stock_positions: the stock model's `get_rope_index`.
        kinds: [B, S], 0 at text, 1 at image and 2 at video tokens.
        attention_mask: [B, cached + S], 0 at padding, or None.

    Raises:
        UserError: there are more or fewer pictures or videos than sizes.
    """
    _check_number(kinds, sizes)
    mask = None if attention_mask is None else attention_mask[:, -kinds.shape[1] :]
    # Positions depend on the kinds of tokens alone.
    return stock_positions(kinds, kinds, *sizes, attention_mask=mask)[0]


def next_position(first: FirstCacheLayer | None) -> torch.Tensor | int:
    """Returns the position [B, 1] of the row after those that are cached, or 0 if there are none."""
    if first is None:
        return 0
    return first.num_seen if first.position_offset is None else first.num_seen + first.position_offset


def required_sizes(name: str, sizes: torch.Tensor | None) -> torch.Tensor:
    """Returns sizes that tell which patches are whose. Raises UserError if there are none."""
    if sizes is None:
        raise UserError(f"{name}: got none; it tells which patches are whose")
    return sizes


def images_of_sizes(kinds: torch.Tensor, sizes: Sizes, merge: int) -> Images:
    """Returns the grids of pictures and videos in the order of the batch, by their sizes.

    Args:
        kinds: [B, S], 0 at text, 1 at image and 2 at video tokens.
        merge: how many patches a side become one token.

    Raises:
        UserError: there are more or fewer pictures or videos than sizes.
    """
    in_order = _check_number(kinds, sizes)
    left = [iter([] if of_kind is None else of_kind.tolist()) for of_kind in sizes]
    shapes = [next(left[kind - 1]) for kind in in_order]
    return tuple(((rows // merge, columns // merge),) * frames for frames, rows, columns in shapes)


def images_of_positions(kinds: torch.Tensor, positions: torch.Tensor) -> Images:
    """Returns the grids of pictures and videos in the order of the batch. They follow from positions.

    Generation gives positions, but no sizes.

    Args:
        kinds: [B, S], 0 at text, 1 at image and 2 at video tokens. A run of these is one picture or video.
        positions: [3 or 4, B, S], of which the last three are time, row and column.

    Raises:
        UserError: they put a picture or video on no grid.
    """
    sample, begin, end = visual_runs(kinds)
    # From the first token of a picture to its last, rows and columns both grow from their least to their greatest.
    heights, widths = positions[-2:, sample, end - 1] - positions[-2:, sample, begin] + 1
    images = []
    for height, width, length in torch.stack([heights, widths, end - begin], dim=1).tolist():
        if height < 1 or width < 1 or length % (height * width):
            raise UserError(
                f"image tokens: got {length} in a row, position_ids place them on a grid of {(height, width)}"
            )
        images.append(((height, width),) * (length // (height * width)))
    return tuple(images)


def _check_number(kinds: torch.Tensor, sizes: Sizes) -> list[int]:
    """Returns the kind of each picture or video among kinds [B, S], in the order of the batch.

    Raises:
        UserError: there are more or fewer than sizes.
    """
    sample, begin, _ = visual_runs(kinds)
    found = kinds[sample, begin].tolist()
    for kind, (name, given) in enumerate(zip(NAMES, sizes, strict=True), 1):
        num_given = 0 if given is None else len(given)
        if found.count(kind) != num_given:
            raise UserError(
                f"{name}: got {num_given} sizes, the rows that are not cached have places for {found.count(kind)}"
            )
    return found
