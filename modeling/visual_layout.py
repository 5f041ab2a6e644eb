"""Where visual tokens are: the two streams of a decoder forward, split from a padded batch and joined again.

A *slot* is a row's place in the whole sequence so far (cached tokens included); causality is `key slot <= query slot`.
Rows of a stream are packed to the left of each sample; padding and ragged counts are the invalid rows on the right.

Shapes: B batch, S sequence rows of this forward, T text rows, V visual rows, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .layer_plan import num_kept
from .user_error import UserError

Images = Sequence[Sequence[tuple[int, int]]]
"""Per image its grids, in (rows, columns) of visual tokens: one, or one per tile or frame."""

NO_SLOT = torch.iinfo(torch.long).max  # the slot of an invalid row as a key: after every query


def num_tokens(image: Sequence[tuple[int, int]]) -> int:
    """Visual tokens of an image with these grids."""
    return sum(rows * columns for rows, columns in image)


def _pack(mask: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the first `length` true columns of each row of mask [B, S], in order, and which of them are real."""
    order = torch.argsort(~mask, dim=1, stable=True)[:, :length]
    return order, mask.gather(1, order)


def gather_rows(rows: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """rows [B, S, D] at index [B, T] -> [B, T, D]; None is the identity."""
    if index is None:
        return rows
    return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


@dataclass(frozen=True)
class TextTokens:
    """The text rows of this forward.

    `index` [B, T] into the S rows (None: T is S and every row is valid), `valid` [B, T], `slots` [B, T];
    `full`: no row is invalid.
    """

    index: torch.Tensor | None
    valid: torch.Tensor
    slots: torch.Tensor
    full: bool


@dataclass(frozen=True)
class VisualTokens:
    """Carried visual rows, and where in which image each lies.

    `index`, `valid`, `slots` as for text; `image` and `grid` [B, V] count the images and the grids (tiles, frames) of the
    sample (-1 for invalid rows), `row` and `column` [B, V] are places in the grid, `place` [B, V] counts the image's original
    tokens and `image_tokens` [B, V] is their number. `grids` are the (rows, columns) of each grid of the batch, `full`: no row is
    invalid.
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
    grids: tuple[tuple[int, int], ...]
    full: bool

    def placed(self, of_tokens: torch.Tensor) -> torch.Tensor:
        """Values [image tokens of the batch, D] in the order of the batch, before any is let go -> [B, V, D]; 0 at padding."""
        rows = of_tokens.new_zeros(*self.valid.shape, of_tokens.shape[1])
        return rows.masked_scatter(self.valid.unsqueeze(-1), of_tokens.to(rows))

    def num_kept(self, fraction: float) -> torch.Tensor:
        """[B, V]: how many tokens of its image are carried at this fraction of the original ones."""
        kept = torch.zeros_like(self.image)
        for size in self.image_tokens.unique().tolist():
            kept = torch.where(self.image_tokens == size, num_kept(fraction, size), kept)
        return kept

    def survivors(self, scores: torch.Tensor, fraction: float) -> tuple["VisualTokens", torch.Tensor]:
        """The best ranked `num_kept(fraction, N)` rows of each image, in their order.

        Args:
            scores: [B, V], higher is better; ties keep the earlier token.
            fraction: of each image's original number of tokens.

        Returns:
            The surviving rows and their indices [B, V'] into the rows of `self`.
        """
        by_score = torch.argsort(scores, dim=1, descending=True, stable=True)
        order = by_score.gather(1, torch.argsort(self.image.gather(1, by_score), dim=1, stable=True))
        rank = place_in_run(self.image.gather(1, order))
        limit = self.num_kept(fraction).gather(1, order)
        keep = torch.zeros_like(self.valid).scatter(1, order, rank < limit) & self.valid
        chosen, valid = _pack(keep, int(keep.sum(1).max()))
        kept_as_is = ("index", "slots", "row", "column", "place", "image_tokens")
        take = {name: getattr(self, name).gather(1, chosen) for name in kept_as_is}
        numbers = {name: torch.where(valid, getattr(self, name).gather(1, chosen), -1) for name in ("image", "grid")}
        slots = torch.where(valid, take.pop("slots"), NO_SLOT)
        kept_tokens = VisualTokens(
            valid=valid, slots=slots, grids=self.grids, full=bool(valid.all()), **numbers, **take
        )
        return kept_tokens, chosen


def place_in_run(numbers: torch.Tensor) -> torch.Tensor:
    """[B, V] -> [B, V]: in each row, how many equal numbers stand right before."""
    place = torch.arange(numbers.shape[1], device=numbers.device).expand_as(numbers)
    first = torch.ones_like(numbers, dtype=torch.bool)
    first[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    return place - torch.where(first, place, 0).cummax(dim=1).values


def split_streams(
    sequence: torch.Size,
    attention_mask: torch.Tensor | None,
    visual_mask: torch.Tensor | None,
    images: Images,
    past_length: int,
    device: torch.device,
) -> tuple[TextTokens, VisualTokens | None]:
    """Tells text rows from visual rows.

    Args:
        sequence: (B, S) of this forward.
        attention_mask: [B, past_length + S], 0 marks padding; None: no padding.
        visual_mask: [B, S] bool, true at image tokens; None: there are none.
        images: the grids of each image, in the order of the batch.
        past_length: number of cached slots.

    Raises:
        UserError: a mask that is not two-dimensional or has another length, or image tokens and images that disagree.
    """
    batch, length = sequence
    if attention_mask is None:
        present = torch.ones(batch, length, dtype=torch.bool, device=device)
    elif attention_mask.dim() != 2 or attention_mask.shape[1] != past_length + length:
        raise UserError(
            f"attention_mask: got shape {tuple(attention_mask.shape)}, allowed: "
            f"[{batch}, {past_length + length}] (2-D, cached tokens included)"
        )
    else:
        present = attention_mask[:, past_length:].to(device=device, dtype=torch.bool)

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


def _visual_tokens(mask: torch.Tensor, slots: torch.Tensor, images: Images) -> VisualTokens:
    counts = mask.sum(1)
    grids = tuple(grid for image in images for grid in image)
    sizes = [rows * columns for rows, columns in grids]
    if int(counts.sum()) != sum(sizes):
        raise UserError(f"image tokens: got {int(counts.sum())} in the input, the images have {sum(sizes)}")
    index, valid = _pack(mask, int(counts.max()))
    device = mask.device

    def place(values: list[torch.Tensor], padding: int) -> torch.Tensor:
        """Values of the batch's visual tokens in order -> [B, V]."""
        empty = torch.full(valid.shape, padding, dtype=torch.long, device=device)
        return empty.masked_scatter(valid, torch.cat(values).to(device))

    def numbers(of_tokens: list[int]) -> torch.Tensor:
        """How many tokens each image or grid has -> each token's number, counted from its sample's first: [B, V]."""
        number = place([torch.arange(len(of_tokens)).repeat_interleave(torch.tensor(of_tokens))], padding=-1)
        return torch.where(valid, number - number[:, :1], -1)

    cells = [torch.arange(size) for size in sizes]
    image_sizes = [num_tokens(image) for image in images]
    return VisualTokens(
        index=index,
        valid=valid,
        slots=torch.where(valid, slots.gather(1, index), NO_SLOT),
        image=numbers(image_sizes),
        grid=numbers(sizes),
        row=place([cell // columns for cell, (_, columns) in zip(cells, grids, strict=True)], padding=0),
        column=place([cell % columns for cell, (_, columns) in zip(cells, grids, strict=True)], padding=0),
        place=place([torch.arange(size) for size in image_sizes], padding=0),
        image_tokens=place([torch.full((size,), size) for size in image_sizes], padding=0),
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
    """Text rows [B, T, D] and visual rows [B, V, D] at their places in [B, S, D]; zeros where there is neither."""
    if text_tokens.index is None:
        return text
    joined = text.new_zeros(text.shape[0], length + 1, text.shape[2])  # the last row takes the invalid ones
    for rows, tokens in ((text, text_tokens), (visual, visual_tokens)):
        if rows is not None:
            index = torch.where(tokens.valid, tokens.index, length)
            joined = joined.scatter(1, index.unsqueeze(-1).expand_as(rows), rows)
    return joined[:, :length]


def answer_starts(supervised: torch.Tensor) -> torch.Tensor:
    """The rows that precede an answer: [B, S] bool, true at answer tokens -> [B, S] bool."""
    starts = torch.zeros_like(supervised)
    starts[:, :-1] = supervised[:, 1:] & ~supervised[:, :-1]
    return starts
