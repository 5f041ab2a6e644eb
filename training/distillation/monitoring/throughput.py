"""How fast a training goes, how much of its batches is padding, how much memory it takes, and when it ends.

Tokens are counted where the batches are, and read when a log is written. So no step waits for a count.
"""

import resource
import sys
import time
from collections.abc import Iterable

import torch
from accelerate import Accelerator

from data.conversations import IGNORE_INDEX


class Throughput:
    """Counts what is trained on between two logs. Every rank has one, and they add up.

    Args:
        accelerator: the trainer's.
        step: optimizer steps done before.
        num_steps: optimizer steps of the whole training.
    """

    def __init__(self, accelerator: Accelerator, step: int, num_steps: int):
        self._accelerator = accelerator
        self._first_step, self._num_steps = step, num_steps
        self._start = self._last_log = time.perf_counter()
        self._samples_and_tokens = torch.zeros(2, dtype=torch.long, device=accelerator.device)
        self._slots = 0
        if accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(accelerator.device)

    def count(self, batches: Iterable[dict[str, torch.Tensor]]) -> None:
        """Counts micro-batches of this rank.

        A row without a supervised token is no sample. `data.collator.AllMediaInEveryBatch` adds such rows, and they
        count as padding.
        """
        for batch in batches:
            supervised = (batch["labels"] != IGNORE_INDEX).any(dim=1)  # [B]
            tokens = batch["attention_mask"].sum(dim=1) * supervised
            self._samples_and_tokens += torch.stack([supervised.sum(), tokens.sum()]).to(self._accelerator.device)
            self._slots += batch["labels"].numel()

    def since_last_log(self, step: int) -> dict[str, float]:
        """Returns the figures since the last call, over all ranks. Every rank calls it.

        Args:
            step: optimizer steps done.
        """
        own = torch.tensor([self._slots, peak_memory(self._accelerator.device)], device=self._accelerator.device)
        of_ranks = self._accelerator.gather(torch.cat([self._samples_and_tokens, own])[None])  # [ranks, 4]
        samples, tokens, slots = of_ranks[:, :3].sum(dim=0).tolist()
        now = time.perf_counter()
        seconds, self._last_log = now - self._last_log, now
        self._samples_and_tokens.zero_()
        self._slots = 0
        return {
            "samples_per_second": samples / seconds,
            "tokens_per_second": tokens / seconds,
            "padding_share": 1 - tokens / slots,
            "peak_memory_bytes": of_ranks[:, 3].max().item(),
            "seconds_left": (now - self._start) / (step - self._first_step) * (self._num_steps - step),
        }


def peak_memory(device: torch.device) -> int:
    """Returns the most bytes that this process had allocated on a GPU, or on a CPU the most that it had resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1024 if sys.platform == "linux" else 1  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
