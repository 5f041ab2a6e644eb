"""Hidden states of all layers as one tensor each, as the stock model returns them."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from .visual_layout import TextTokens, gather_rows, join_streams
from .visual_stream import VisualStream


class HiddenStates:
    """Hidden states [B, S, D] of all layers, if they are asked for.

    Layers go on from the states that are kept, so that these get gradients and pass them on.

    Args:
        asked: whether they are asked for, or the numbers of those that are. The others are None, as in the stock model.
        num_layers: of the decoder, which has one more state than layers.
        length: S.
    """

    def __init__(self, asked: bool | int | Sequence[int] | None, num_layers: int, length: int):
        numbers = range(num_layers + 1)
        if asked is None or isinstance(asked, bool):
            self._asked = set(numbers) if asked else set()
        else:
            chosen = [asked] if isinstance(asked, int) else asked
            self._asked = {numbers[number] for number in chosen if -len(numbers) <= number < len(numbers)}
        self._length = length
        self._states: list[torch.Tensor | None] = []

    def through(
        self, text: torch.Tensor, text_tokens: TextTokens, visual: VisualStream | None
    ) -> tuple[torch.Tensor, VisualStream | None]:
        """Keeps the rows that a layer takes, if they are asked for, and returns them."""
        if len(self._states) not in self._asked:
            self._states.append(None)
            return text, visual
        rows, tokens = (None, None) if visual is None else (visual.states, visual.tokens)
        joined = join_streams(text, text_tokens, rows, tokens, self._length)
        self._states.append(joined)
        if visual is not None:
            visual = replace(visual, states=gather_rows(joined, visual.tokens.index))
        return gather_rows(joined, text_tokens.index), visual

    def with_last(self, last: torch.Tensor) -> tuple[torch.Tensor | None, ...] | None:
        """Returns all of them and the last one, or None if none was asked for."""
        return (*self._states, last if len(self._states) in self._asked else None) if self._asked else None
