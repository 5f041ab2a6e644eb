"""Attention masks of one forward. Layers that carry the same visual tokens share them.

True means that the query sees the key. Masks compare slots (see visual_layout.py).
A padding row sees every key, so that no softmax is empty. No row reads what a padding row gives.

Shapes: B batch, T text rows, V visual rows, Q queries, L keys, P text rows, `before_visual` of `TextTokens`.
"""

import torch

from .neighbor_attention import NeighborTiles, neighbor_mask, neighbor_tiles, tile_slots, tiles_pay
from .visual_cache import KeySlots
from .visual_layout import TextTokens, VisualTokens


def causal_mask(query_slots: torch.Tensor, keys: KeySlots) -> torch.Tensor:
    """Returns the causal mask [B, 1, Q, L], bool, for queries at slots [B, Q].

    A padding query has the greatest slot of all, so it sees every key.
    """
    return keys.slots[:, None, None, :] <= query_slots[:, None, :, None]


class TextMasks:
    """Keys and mask of text rows over text rows, which every layer has.

    Args:
        text: the text rows of this forward.
        past: slots of the text rows that are cached.

    Attributes:
        keys: slots of all text rows, those of this forward last.
        mask: [B, 1, T, L] bool. None means that attention is causal without a mask, or that one query sees all keys.
    """

    def __init__(self, text: TextTokens, past: KeySlots):
        self.keys = past.extended(None, text)
        num_queries = text.slots.shape[1]
        # Without a mask the queries are the last keys: causal by their order, or one row that sees them all.
        needs_no_mask = self.keys.full and (num_queries == 1 or past.slots.shape[1] == 0)
        self.mask = None if needs_no_mask else causal_mask(text.slots, self.keys)


class StageMasks:
    """Masks of visual and text rows together. A stage is a run of layers that carry the same visual tokens.

    Args:
        text: the text rows of this forward.
        visual: the visual rows carried, or None if this forward has none. Masks of visual rows need them.
        past: slots of the visual and text rows cached so far in this stage, or of text rows if there were no pictures.
        text_keys: slots of all text rows, this forward included.

    Attributes:
        keys: slots of the joint keys: cached ones, then this forward's visual rows, then its text rows.
        mask: [B, 1, T, L] bool, text rows over the joint keys. None means that one query sees all of them.
    """

    def __init__(self, text: TextTokens, visual: VisualTokens | None, past: KeySlots, text_keys: KeySlots):
        self.text, self.past, self.text_keys = text, past, text_keys
        self._visual = visual
        self.keys = past.extended(visual, text)
        needs_no_mask = visual is None and self.keys.full and text.slots.shape[1] == 1
        self.mask = None if needs_no_mask else causal_mask(text.slots, self.keys)
        self._visual_masks: dict[tuple[bool, int | None, bool], torch.Tensor] = {}
        self._tiles: dict[tuple[int, bool], NeighborTiles] = {}

    @property
    def visual(self) -> VisualTokens:
        """The visual rows carried."""
        assert self._visual is not None, "this forward has no visual rows"
        return self._visual

    def text_mask(self) -> torch.Tensor:
        """Returns the mask [B, V, P], bool, of visual rows over the first P text rows of this forward."""
        return self.text.slots[:, None, : self.text.before_visual] < self.visual.slots[:, :, None]

    def visual_mask(self, read: bool, radius: int | None, bidirectional: bool) -> torch.Tensor:
        """Returns the mask [B, 1, V, L], bool, of visual rows over their keys.

        Args:
            read: whether text reads visual keys in the layer. If so, the keys are the joint ones. If not, they are this
                forward's visual rows, then all text rows.
            radius: greatest Chebyshev distance at which a visual row sees a visual row. None means no limit.
            bidirectional: whether later visual rows within the radius are seen too.
        """
        setting = (read, radius, bidirectional)
        if setting not in self._visual_masks:
            keys, first_visual = (
                (self.keys, self.past.slots.shape[1]) if read else (self.text_keys.after(self.visual), 0)
            )
            mask = causal_mask(self.visual.slots, keys)
            if radius is not None:
                near = torch.zeros_like(mask)
                own = slice(first_visual, first_visual + self.visual.slots.shape[1])
                near[:, 0, :, own] = neighbor_mask(*self._positions(), radius, bidirectional)
                mask = (mask & keys.is_text) | near | ~self.visual.valid[:, None, :, None]
            self._visual_masks[setting] = mask
        return self._visual_masks[setting]

    def tiles(self, radius: int | None, bidirectional: bool) -> NeighborTiles | None:
        """Returns the tiles of neighbour attention, or None where one masked product costs less."""
        if radius is None or self.past.slots.shape[1] > 0:
            return None
        batch, num_tokens = self.visual.slots.shape
        _, pair_slots = tile_slots([grid for grids in self.visual.grids for grid in grids], radius)
        if not tiles_pay(num_tokens, -(-pair_slots // batch)):
            return None
        setting = (radius, bidirectional)
        if setting not in self._tiles:
            self._tiles[setting] = neighbor_tiles(self.visual.grids, *self._positions(), radius, bidirectional)
        return self._tiles[setting]

    def _positions(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the grid number, the row and the column of each visual row, each [B, V]."""
        return self.visual.grid, self.visual.row, self.visual.column
