"""Where visual tokens are. A padded batch is split into the two streams of a decoder forward, and joined again.

A *slot* is a row's place in the whole sequence so far, cached tokens included. Causal means `key slot <= query slot`.
In a stream, the rows of each sample stand on the left. Samples have different numbers of rows, so invalid rows fill the
right.

Shapes: B batch, S sequence rows of this forward, T text rows, V visual rows, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from .layer_plan import num_kept
from .user_error import UserError

Grid: TypeAlias = tuple[int, int]
"""Rows and columns of visual tokens."""

Images: TypeAlias = Sequence[Sequence[Grid]]
"""The image grids of each image. An image has one grid, or one for each of its tiles or frames."""

NO_SLOT = torch.iinfo(torch.long).max  # the slot of an invalid row: as a key it stands after every query


def num_tokens(image: Sequence[Grid]) -> int:
    """Returns the number of visual tokens of an image with these grids."""
    return sum(rows * columns for rows, columns in image)


def _pack(mask: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the indices [B, length] of the first true columns of mask [B, S], and which of them are real."""
    order = torch.argsort(~mask, dim=1, stable=True)[:, :length]
    return order, mask.gather(1, order)


def gather_rows(rows: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """Returns rows [B, S, D] at index [B, T], which is [B, T, D]. Without an index it returns all rows."""
    if index is None:
        return rows
    return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


@dataclass(frozen=True)
class TextTokens:
    """The text rows of this forward.

    Attributes:
        index: [B, T] long, into the S rows. None means that T is S and every row is valid.
        valid: [B, T] bool.
        slots: [B, T] long.
        full: whether every row is valid.
    """

    index: torch.Tensor | None
    valid: torch.Tensor
    slots: torch.Tensor
    full: bool


@dataclass(frozen=True)
class VisualTokens:
    """The visual rows that are carried, and where in which image each lies. All tensors but `valid` are long.

    Attributes:
        index: [B, V], into the S rows.
        valid: [B, V] bool.
        slots: [B, V].
        image: [B, V], the number of the row's image in its sample; -1 at invalid rows.
        grid: [B, V], the number of the row's grid (tile or frame) in its sample; -1 at invalid rows.
        row, column: [B, V], the row's position in its grid.
        place: [B, V], the row's number among the original tokens of its image.
        image_tokens: [B, V], the number of these.
        grids: the (rows, columns) of each grid of the batch.
        full: whether every row is valid.
    """

    index: torch.Tensor
    valid: torch.Tensor
    slots: torch.Tensor
    image: torch.Tensor
    grid: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor
    place: torch.Tensor
    image_tokens: torch.Tensor
    grids: tuple[Grid, ...]
    full: bool

    def padded(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the values [B, V, D] of visual rows, 0 at invalid ones, before any token is left out.

        Args:
            values: [image tokens of the batch, D], in the order of the batch.
        """
        rows = values.new_zeros(*self.valid.shape, values.shape[1])
        return rows.masked_scatter(self.valid.unsqueeze(-1), values.to(rows))

    def num_kept(self, fraction: float) -> torch.Tensor:
        """Returns [B, V] long, how many tokens of the row's image are kept at this fraction of the original ones."""
        kept = torch.zeros_like(self.image)
        for size in self.image_tokens.unique().tolist():
            kept = torch.where(self.image_tokens == size, num_kept(fraction, size), kept)
        return kept

    def survivors(self, scores: torch.Tensor, fraction: float) -> tuple["VisualTokens", torch.Tensor]:
        """Chooses the best `num_kept(fraction)` rows of each image, and keeps their order.

        Args:
            scores: [B, V], higher is better. Of equal scores, the earlier token's counts as better.
            fraction: share of each image's original tokens.

        Returns:
            The chosen rows, and their indices [B, V'] into the rows of `self`.
        """
        by_score = torch.argsort(scores, dim=1, descending=True, stable=True)
        order = by_score.gather(1, torch.argsort(self.image.gather(1, by_score), dim=1, stable=True))
        rank = place_in_run(self.image.gather(1, order))
        limit = self.num_kept(fraction).gather(1, order)
        keep = torch.zeros_like(self.valid).scatter(1, order, rank < limit) & self.valid
        chosen, valid = _pack(keep, int(keep.sum(1).max()))

        def of_chosen(values: torch.Tensor, invalid: int | None = None) -> torch.Tensor:
            taken = values.gather(1, chosen)
            return taken if invalid is None else torch.where(valid, taken, invalid)

        kept_tokens = VisualTokens(
            index=of_chosen(self.index),
            valid=valid,
            slots=of_chosen(self.slots, invalid=NO_SLOT),
            image=of_chosen(self.image, invalid=-1),
            grid=of_chosen(self.grid, invalid=-1),
            row=of_chosen(self.row),
            column=of_chosen(self.column),
            place=of_chosen(self.place),
            image_tokens=of_chosen(self.image_tokens),
            grids=self.grids,
            full=bool(valid.all()),
        )
        return kept_tokens, chosen


def place_in_run(numbers: torch.Tensor) -> torch.Tensor:
    """Returns [B, V] long, how many equal numbers stand right before each of the numbers [B, V] in its row."""
    place = torch.arange(numbers.shape[1], device=numbers.device).expand_as(numbers)
    first = torch.ones_like(numbers, dtype=torch.bool)
    first[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    return place - torch.where(first, place, 0).cummax(dim=1).values


def split_streams(
    sequence: Sequence[int],
    attention_mask: torch.Tensor | None,
    visual_mask: torch.Tensor | None,
    images: Images,
    past_length: int,
    device: torch.device,
) -> tuple[TextTokens, VisualTokens | None]:
    """Returns the text rows and the visual rows of a forward.

    Args:
        sequence: (B, S) of this forward.
        attention_mask: [B, past_length + S], 0 at padding. None means that there is no padding.
        visual_mask: [B, S] bool, true at image tokens. None means that there are none.
        images: the grids of each image, in the order of the batch.
        past_length: number of cached slots.

    Raises:
        UserError: the attention mask is not two-dimensional or has another length, or the numbers of image tokens in
            the input and in the images differ.
    """
    batch, length = sequence
    present = _present(attention_mask, batch, length, past_length, device)
    slots = torch.arange(past_length, past_length + length, device=device).expand(batch, length)
    if visual_mask is None:
        if bool(present.all()):
            return TextTokens(index=None, valid=present, slots=slots, full=True), None
        visual = None
        is_text = present
    else:
        visual_mask = visual_mask & present
        visual = _visual_tokens(visual_mask, slots, images)
        is_text = present & ~visual_mask
    counts = is_text.sum(1)
    index, valid = _pack(is_text, int(counts.max()))
    text_slots = torch.where(valid, slots.gather(1, index), NO_SLOT)
    return TextTokens(index=index, valid=valid, slots=text_slots, full=bool(valid.all())), visual


def _present(
    attention_mask: torch.Tensor | None, batch: int, length: int, past_length: int, device: torch.device
) -> torch.Tensor:
    """Returns which rows of this forward are not padding, [B, S] bool. Raises UserError for a mask of another shape."""
    if attention_mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=device)
    if attention_mask.dim() != 2 or attention_mask.shape[1] != past_length + length:
        raise UserError(
            f"attention_mask: got shape {tuple(attention_mask.shape)}, allowed: "
            f"[{batch}, {past_length + length}] (2-D, cached tokens included)"
        )
    return attention_mask[:, past_length:].to(device=device, dtype=torch.bool)


def _visual_tokens(mask: torch.Tensor, slots: torch.Tensor, images: Images) -> VisualTokens:
    """Returns the visual rows at mask [B, S]. Raises UserError if the images have another number of tokens."""
    counts = mask.sum(1)
    grids = tuple(grid for image in images for grid in image)
    sizes = [rows * columns for rows, columns in grids]
    if int(counts.sum()) != sum(sizes):
        raise UserError(f"image tokens: got {int(counts.sum())} in the input, the images have {sum(sizes)}")
    index, valid = _pack(mask, int(counts.max()))
    device = mask.device

    def padded(values: list[torch.Tensor], padding: int) -> torch.Tensor:
        """Returns [B, V], the values of the batch's visual tokens in order, and `padding` at invalid rows."""
        empty = torch.full(valid.shape, padding, dtype=torch.long, device=device)
        return empty.masked_scatter(valid, torch.cat(values).to(device))

    def numbers(token_counts: list[int]) -> torch.Tensor:
        """Returns [B, V], the number of each row's image or grid in its sample, given how many tokens each has."""
        number = padded([torch.arange(len(token_counts)).repeat_interleave(torch.tensor(token_counts))], padding=-1)
        return torch.where(valid, number - number[:, :1], -1)

    cells = [torch.arange(size) for size in sizes]
    image_sizes = [num_tokens(image) for image in images]
    return VisualTokens(
        index=index,
        valid=valid,
        slots=torch.where(valid, slots.gather(1, index), NO_SLOT),
        image=numbers(image_sizes),
        grid=numbers(sizes),
        row=padded([cell // columns for cell, (_, columns) in zip(cells, grids, strict=True)], padding=0),
        column=padded([cell % columns for cell, (_, columns) in zip(cells, grids, strict=True)], padding=0),
        place=padded([torch.arange(size) for size in image_sizes], padding=0),
        image_tokens=padded([torch.full((size,), size) for size in image_sizes], padding=0),
        grids=grids,
        full=bool(valid.all()),
    )


def join_streams(
    text: torch.Tensor,
    text_tokens: TextTokens,
    visual: torch.Tensor | None,
    visual_tokens: VisualTokens | None,
    length: int,
) -> torch.Tensor:
    """Returns [B, length, D]: text rows [B, T, D] and visual rows [B, V, D] where they stood before the split.

    Rows that neither stream has are 0.
    """
    if text_tokens.index is None:
        return text
    joined = text.new_zeros(text.shape[0], length + 1, text.shape[2])  # the last row takes the invalid ones
    joined = _scattered(joined, text, text_tokens.index, text_tokens.valid)
    if visual is not None and visual_tokens is not None:
        joined = _scattered(joined, visual, visual_tokens.index, visual_tokens.valid)
    return joined[:, :length]


def _scattered(joined: torch.Tensor, rows: torch.Tensor, index: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Returns `joined` with `rows` [B, T, D] put at `index` [B, T], the invalid ones at the last row."""
    index = torch.where(valid, index, joined.shape[1] - 1)
    return joined.scatter(1, index.unsqueeze(-1).expand_as(rows), rows)


def answer_starts(supervised: torch.Tensor) -> torch.Tensor:
    """Returns which rows precede an answer, [B, S] bool, given which rows are answer tokens, [B, S] bool."""
    starts = torch.zeros_like(supervised)
    starts[:, :-1] = supervised[:, 1:] & ~supervised[:, :-1]
    return starts
