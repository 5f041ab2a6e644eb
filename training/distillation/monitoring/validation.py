"""Held-out samples: drawn from the training data, not trained on, and looked at while a student is trained."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from data.collator import Collator
from data.dataset import ConversationDataset
from modeling.user_error import UserError
from training.ranks import rank, world_size


def hold_out(
    dataset: ConversationDataset, num_samples: int, seed: int
) -> tuple[ConversationDataset, ConversationDataset]:
    """Returns the samples to train on, and `num_samples` that are held out.

    A sample that is in the data several times is held out with all its copies, and is among the held-out samples once.

    Raises:
        UserError: nothing would be left to train on.
    """
    _, first = np.unique(dataset.digests, return_index=True)
    first.sort()
    if num_samples >= len(first):
        raise UserError(
            f"validation.num_samples: got {num_samples}, allowed: less than the {len(first)} different samples of "
            "data.train, from which they are taken"
        )
    held_out = np.sort(first[random.Random(f"{seed} validation").sample(range(len(first)), num_samples)])
    kept = ~np.isin(dataset.digests, dataset.digests[held_out])
    return dataset.subset(np.flatnonzero(kept)), dataset.subset(held_out)


@dataclass(frozen=True)
class Validation:
    """What a trainer looks at, and when."""

    dataset: ConversationDataset
    """The held-out samples."""
    collator: Collator
    """Makes batches of them."""
    steps: int
    """Optimizer steps from one look to the next. There is one after the last step, too."""

    def means(
        self,
        batch_size: int,
        token_sums: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
        over_ranks: Callable[[torch.Tensor], torch.Tensor],
    ) -> dict[str, float]:
        """Returns means over the supervised tokens of all held-out samples. Every rank calls it.

        Args:
            batch_size: samples that a rank looks at together.
            token_sums: returns the sums over a batch's supervised tokens, scalars, and as `tokens` their number.
            over_ranks: sums a tensor over all ranks.
        """
        totals: dict[str, torch.Tensor] = {}
        for batch, counts in self.own_batches(batch_size):
            for name, value in token_sums(batch).items():
                totals[name] = totals.get(name, 0) + value.float() * counts
        sums = dict(zip(totals, over_ranks(torch.stack(list(totals.values()))).tolist(), strict=True))
        tokens = sums.pop("tokens")
        return {name: value / tokens for name, value in sums.items()}

    def own_batches(self, batch_size: int) -> Iterator[tuple[dict[str, torch.Tensor], bool]]:
        """Yields this rank's batches, each with whether it counts.

        All ranks get the same number of batches, as sharded models need it. Where there are too few, a rank gets one
        that another rank has as well, and it does not count.
        """
        order = np.lexsort((self.dataset.lengths, self.dataset.modality)).tolist()
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        rounds = -(-len(batches) // world_size())
        for number in range(rank(), rounds * world_size(), world_size()):
            indices = batches[number % len(batches)]
            yield self.collator([self.dataset[index] for index in indices]), number < len(batches)
