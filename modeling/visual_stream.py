"""The visual rows of a forward, layer by layer. Where a plan's `tokens` falls, some of them are left behind.

Shapes: B batch, V visual rows, D hidden size.
"""

from dataclasses import dataclass

import torch

from .visual_layout import VisualTokens, gather_rows
from .visual_plan import LiveLayer
from .visual_ranking import scores_before_layers


@dataclass(frozen=True)
class VisualStream:
    """The visual rows that are carried.

    Attributes:
        states: [B, V, D].
        tokens: where each row lies.
        class_attention: [B, V, blocks], attention of the vision tower's class token, or None.
    """

    states: torch.Tensor
    tokens: VisualTokens
    class_attention: torch.Tensor | None

    def entering(self, live: LiveLayer, scores: torch.Tensor | None) -> "VisualStream | None":
        """Returns the rows that a layer carries, or None if it carries none.

        Args:
            live: the layer.
            scores: [B, V], the attention that the rows received in the layer before, if the layer ranks them by it.
        """
        if live.tokens == 0:
            return None
        if not live.keep:
            return self
        if not live.rank.by_attention:
            scores = scores_before_layers(live.rank, self.tokens, live.tokens, self.class_attention)
        assert scores is not None, "the layer before computes the attention that its tokens are ranked by"
        tokens, chosen = self.tokens.survivors(scores, live.tokens)
        attention = self.class_attention
        return VisualStream(
            states=gather_rows(self.states, chosen),
            tokens=tokens,
            class_attention=None if attention is None else gather_rows(attention, chosen),
        )
