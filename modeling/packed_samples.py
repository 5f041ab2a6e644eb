"""Several samples in one row of a batch, told apart by positions that begin again, as in training without padding.

The decoder runs them as the samples of a padded batch. So none sees another, under any plan.

Shapes: B batch, S sequence rows, N samples, L rows of the longest one, D hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .host_memory import to_device, to_host
from .user_error import UserError

BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""Arguments by which collators tell flash attention, which is not used here, where samples begin."""


@dataclass(frozen=True)
class PackedSamples:
    """Where samples lie in a batch. Both tensors lie on the host.

    Attributes:
        batch: B.
        source: [N, L] long, into the B * S rows of the batch; 0 at padding.
        present: [N, L] bool, false at padding.
    """

    batch: int
    source: torch.Tensor
    present: torch.Tensor

    @classmethod
    def of(cls, position_ids: torch.Tensor, batch: int) -> "PackedSamples | None":
        """Returns the samples, or None if each row of the batch is one. Reads positions on a device, which waits.

        Args:
            position_ids: [B or 1, S] long, of text, or [4, B, S] with those of text first, or [3, B, S] with time, row
                and column. A sample begins where a position of text is not the one before and one.
            batch: B.

        Raises:
            UserError: positions of three dimensions begin again, which do not say where samples begin.
        """
        (positions,) = to_host(position_ids)
        if positions.dim() == 3 and positions.shape[0] != 4:
            if bool((positions[0].diff(dim=-1) < 0).any()):
                raise UserError(
                    "position_ids: got [3, B, S] that begin again, allowed for packed samples: [4, B, S] with the "
                    "positions of text first, or an attention_mask"
                )
            return None
        positions = (positions[0] if positions.dim() == 3 else positions).expand(batch, -1)
        begins = F.pad(positions.diff(dim=-1) != 1, (1, 0), value=True)
        if int(begins.sum()) == batch:
            return None
        first = begins.flatten().nonzero().squeeze(1)
        lengths = F.pad(first, (0, 1), value=begins.numel()).diff()
        steps = torch.arange(int(lengths.max()))
        present = steps < lengths[:, None]
        return cls(batch, source=torch.where(present, first[:, None] + steps, 0), present=present)

    def unpacked(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns [N, L, ...] of rows [B, S, ...]."""
        taken = rows.flatten(0, 1).index_select(0, to_device(self.source.flatten(), rows.device))
        return taken.unflatten(0, self.source.shape)

    def unpacked_positions(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Returns position_ids [B or 1, S] as [N, L], or [3 or 4, B or 1, S] as [3 or 4, N, L]."""
        if position_ids.dim() == 3:
            return torch.stack([self.unpacked_positions(of_axis) for of_axis in position_ids])
        return self.unpacked(position_ids.expand(self.batch, -1))

    def packed(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns [B, S, ...] of rows [N, L, ...]."""
        source = self.present.flatten().nonzero().squeeze(1)
        return rows.flatten(0, 1).index_select(0, to_device(source, rows.device)).unflatten(0, (self.batch, -1))


def refuse_bounds(arguments: Mapping[str, Any], position_ids: torch.Tensor | None) -> None:
    """Raises UserError if samples are packed, but not told apart by positions."""
    given = [name for name in BOUNDS if arguments.get(name) is not None]
    if given and position_ids is None:
        raise UserError(
            f"{', '.join(given)}: got where packed samples begin, allowed: position_ids that begin again at each sample"
        )
