"""Who may see whom in one forward: masks over slots, shared by the layers that carry the same visual tokens.

True means visible. Rows that hold nothing see everything, so that no softmax is empty; nobody reads them.

Shapes: B batch, T text rows, V visual rows, L keys of a group, P text rows before the images.
"""

from functools import cached_property

import torch

from .neighbor_attention import NeighborTiles, neighbor_mask, neighbor_tiles, tile_slots, tiles_pay
from .visual_cache import KeySlots
from .visual_layout import TextTokens, VisualTokens


def causal_mask(query_slots: torch.Tensor, keys: KeySlots) -> torch.Tensor:
    """[B, 1, Q, L]; a query of an invalid row has the last slot of all and sees every key."""
    return keys.slots[:, None, None, :] <= query_slots[:, None, :, None]


class TextMasks:
    """Masks of the text group, which every layer has."""

    def __init__(self, text: TextTokens, past: KeySlots):
        self.keys = past.extended(None, text)
        num_queries = text.slots.shape[1]
        # Without a mask the queries are the last keys: causal by place, or one row that sees them all.
        plain = self.keys.full and (num_queries == 1 or past.slots.shape[1] == 0)
        self.mask = None if plain else causal_mask(text.slots, self.keys)


class StageMasks:
    """Masks of the joint group, for the layers between two falls of `tokens`.

    Args:
        visual: the visual rows carried; None when this forward brings none.
        past: the joint slots cached so far in this stage (the text slots, before the first picture).
        texts: the text group's keys, this forward included.
    """

    def __init__(self, text: TextTokens, visual: VisualTokens | None, past: KeySlots, texts: KeySlots):
        self.text, self.visual, self.past, self.texts = text, visual, past, texts
        self.keys = past.extended(visual, text)
        plain = visual is None and self.keys.full and text.slots.shape[1] == 1
        self.mask = None if plain else causal_mask(text.slots, self.keys)
        self._visual_masks: dict[tuple[bool, int | None, bool], torch.Tensor] = {}
        self._tiles: dict[tuple[int, bool], NeighborTiles] = {}

    @cached_property
    def text_before(self) -> int:
        """P: text rows that any visual row of the batch may see."""
        last = torch.where(self.visual.valid, self.visual.slots, -1).max(dim=1, keepdim=True).values
        return int((self.text.slots < last).sum(1).max())

    def text_mask(self) -> torch.Tensor:
        """[B, V, P]: visual rows over this forward's first P text rows."""
        return self.text.slots[:, None, : self.text_before] < self.visual.slots[:, :, None]

    def visual_mask(self, read: bool, radius: int | None, bidirectional: bool) -> torch.Tensor:
        """[B, 1, V, L]: visual rows over the joint keys, or in a blind layer over themselves and then all text."""
        setting = (read, radius, bidirectional)
        if setting not in self._visual_masks:
            keys, own = (self.keys, self.past.slots.shape[1]) if read else (self.texts.after(self.visual), 0)
            mask = causal_mask(self.visual.slots, keys)
            if radius is not None:
                near = torch.zeros_like(mask)
                place = (self.visual.grid, self.visual.row, self.visual.column)
                near[:, 0, :, own : own + self.visual.slots.shape[1]] = neighbor_mask(*place, radius, bidirectional)
                mask = (mask & keys.is_text) | near | ~self.visual.valid[:, None, :, None]
            self._visual_masks[setting] = mask
        return self._visual_masks[setting]

    def tiles(self, radius: int | None, bidirectional: bool) -> NeighborTiles | None:
        """The tiles of neighbour attention, where they cost less than one masked product."""
        if radius is None or self.past.slots.shape[1] > 0:
            return None
        batch, num_tokens = self.visual.slots.shape
        _, pair_slots = tile_slots(self.visual.grids, radius)
        if not tiles_pay(num_tokens, -(-pair_slots // batch)):
            return None
        setting = (radius, bidirectional)
        if setting not in self._tiles:
            place = (self.visual.grid, self.visual.row, self.visual.column)
            self._tiles[setting] = neighbor_tiles(*place, radius, bidirectional)
        return self._tiles[setting]
