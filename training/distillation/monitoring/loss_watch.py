"""Watches that every loss is finite, without a look at each of them.

A look makes the host wait for the device. So losses stay on the device until metrics are logged or a checkpoint is to
be saved, and are then looked at together. A step that spoilt the weights is found a few steps later, but before
anything is written of it.
"""

import torch
from accelerate import Accelerator

from modeling.user_error import UserError


class LossWatch:
    """The losses since the last look.

    Args:
        accelerator: of the training. All processes look at the same time, and stop with the same message.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self._seen: list[torch.Tensor] = []

    def add(self, step: int, loss: torch.Tensor, num_tokens: torch.Tensor | int) -> None:
        """Remembers a micro-batch's loss.

        Args:
            step: the number of its step, from 1 on.
            loss: a scalar.
            num_tokens: supervised tokens of the whole step.
        """
        values = torch.zeros(3, device=loss.device)
        values[0], values[1], values[2] = step, loss.detach(), num_tokens
        self._seen.append(values)

    def look(self, learning_rate: float) -> None:
        """Forgets the losses. Every process calls this.

        Args:
            learning_rate: the present one, for the message.

        Raises:
            UserError: a loss of any process was not finite. It names the first step with one.
        """
        if not self._seen:
            return
        seen, self._seen = torch.stack(self._seen), []
        step = torch.where(seen[:, 1].isfinite(), torch.inf, seen[:, 0])
        first = torch.cat([step[:, None], seen[:, 1:]], dim=1)[step.argmin(keepdim=True)]  # [1, 3]
        found = min(self._accelerator.gather(first).tolist())
        if found[0] == torch.inf:
            return
        if found[2] == 0:
            raise UserError(f"step {found[0]:.0f}: no token of its batches is supervised, nothing to train on")
        raise UserError(
            f"step {found[0]:.0f}: the loss is {found[1]}; "
            f"the learning rate (now {learning_rate:.2g}) may be too high, or the data or weights hold NaN"
        )
