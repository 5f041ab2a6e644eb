"""Where the rows of the two streams of a decoder forward are. stream_split.py finds them.

A *slot* is a row's place in the whole sequence so far, cached tokens included. Causal means `key slot <= query slot`.
In a stream, the rows of each sample stand on the left. Samples have different numbers of rows, so invalid rows fill the
right.

Shapes: B batch, S sequence rows of this forward, T text rows, V visual rows, D hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from .host_memory import to_device
from .layer_plan import num_kept

Grid: TypeAlias = tuple[int, int]
"""Rows and columns of visual tokens."""

Images: TypeAlias = Sequence[Sequence[Grid]]
"""The image grids of each image. An image has one grid, or one for each of its tiles or frames."""

NO_SLOT = torch.iinfo(torch.long).max  # the slot of an invalid row: as a key it stands after every query


def num_tokens(image: Sequence[Grid]) -> int:
    """Returns the number of visual tokens of an image with these grids."""
    return sum(rows * columns for rows, columns in image)


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
        num_last: how many of the S rows, counted from the last, are text in every sample.
        source: [B, S] long, the text row that each of the S rows ends as, or T for none. Padding after a sample that
            ends with text repeats its last row. None if the rows are the text rows.
        before_visual: the greatest number of a sample's text rows that stand before its last visual row.
        ranking: for each kind of ranking rows of a plan, the indices [B, R] of the rows that rank visual tokens into
            the T rows, and which of them are real, both in the host's memory. It is empty without visual rows.
    """

    index: torch.Tensor | None
    valid: torch.Tensor
    slots: torch.Tensor
    full: bool
    num_last: int
    source: torch.Tensor | None = None
    before_visual: int = 0
    ranking: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def spread(self, text: torch.Tensor) -> torch.Tensor:
        """Returns [B, S, D] of text rows [B, T, D], by `source`. Rows that have none are 0."""
        if self.source is None:
            return text
        return gather_rows(torch.cat([text, text.new_zeros(text.shape[0], 1, text.shape[2])], dim=1), self.source)


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
        images: the grids of each image of each sample.
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
    images: tuple[Images, ...]
    full: bool

    @property
    def grids(self) -> tuple[tuple[Grid, ...], ...]:
        """The (rows, columns) of each grid of each sample."""
        return tuple(tuple(grid for image in images for grid in image) for images in self.images)

    def padded(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the values [B, V, D] of visual rows, 0 at invalid ones, before any token is left out.

        Args:
            values: [image tokens of the batch, D], in the order of the batch.
        """
        rows = values.new_zeros(*self.valid.shape, values.shape[1])
        return rows.masked_scatter(self.valid.unsqueeze(-1), values.to(rows))

    def num_kept(self, fraction: float) -> torch.Tensor:
        """Returns [B, V] long, how many tokens of the row's image are kept at this fraction of the original ones.

        It is 0 at invalid rows.
        """
        counts = self._kept_of_images(fraction)
        most = max(map(len, counts))
        table = torch.tensor([[*of_sample, *[0] * (most + 1 - len(of_sample))] for of_sample in counts])
        image = torch.where(self.image < 0, most, self.image)
        return to_device(table, image.device).gather(1, image)

    def _kept_of_images(self, fraction: float) -> list[list[int]]:
        """Returns how many tokens of each image of each sample are kept at this fraction of the original ones."""
        return [[num_kept(fraction, num_tokens(image)) for image in images] for images in self.images]

    def survivors(self, scores: torch.Tensor, fraction: float) -> tuple["VisualTokens", torch.Tensor]:
        """Chooses the best `num_kept(fraction)` rows of each image, and keeps their order.

        Args:
            scores: [B, V], higher is better. Of equal scores, the earlier token's counts as better.
            fraction: share of each image's original tokens. No image carries fewer.

        Returns:
            The chosen rows, and their indices [B, V'] into the rows of `self`.
        """
        by_score = torch.argsort(scores, dim=1, descending=True, stable=True)
        order = by_score.gather(1, torch.argsort(self.image.gather(1, by_score), dim=1, stable=True))
        rank = place_in_run(self.image.gather(1, order))
        limit = self.num_kept(fraction).gather(1, order)
        keep = torch.zeros_like(self.valid).scatter(1, order, rank < limit) & self.valid
        # How many rows are chosen is known without a look at the device.
        counts = [sum(of_sample) for of_sample in self._kept_of_images(fraction)]
        chosen = torch.argsort(~keep, dim=1, stable=True)[:, : max(counts)]
        valid = keep.gather(1, chosen)

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
            images=self.images,
            full=len(set(counts)) == 1,
        )
        return kept_tokens, chosen


def place_in_run(numbers: torch.Tensor) -> torch.Tensor:
    """Returns [B, V] long, how many equal numbers stand right before each of the numbers [B, V] in its row."""
    place = torch.arange(numbers.shape[1], device=numbers.device).expand_as(numbers)
    first = torch.ones_like(numbers, dtype=torch.bool)
    first[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    return place - torch.where(first, place, 0).cummax(dim=1).values


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
