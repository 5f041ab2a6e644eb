"""The order in which samples are trained on: random, or so that the samples of a batch are alike.

A batch is padded to its longest sample, so batches of samples of one length hold little padding. With several
processes a step takes as long as its slowest rank, so the batches of a step are alike too.

Every process holds the whole order. accelerate hands its batches out to the ranks, in turn.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers import Trainer
from transformers.trainer_pt_utils import get_length_grouped_indices

from training.distillation.trainer_checkpoints import reading_checkpoint
from training.files import writing


class SampleOrder(Sampler[int]):
    """The indices of a dataset, each once, in a new random order in every epoch. Seed and epoch decide it.

    Args:
        num_samples: size of the dataset.
        seed: seed of the order.
        epoch: returns the number of the epoch that begins, from 0. accelerate tells samplers their epoch as well, but
            not where several processes continue a training in the middle of an epoch.
    """

    def __init__(self, num_samples: int, seed: int, epoch: Callable[[], int]):
        self._num_samples, self._seed, self._epoch = num_samples, seed, epoch

    def __len__(self) -> int:
        return self._num_samples

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices(torch.Generator().manual_seed(self._seed + self._epoch())))

    def indices(self, generator: torch.Generator) -> list[int]:
        """Returns the order that `generator` draws."""
        return torch.randperm(self._num_samples, generator=generator).tolist()


class GroupedOrder(SampleOrder):
    """An order whose batches have samples of similar length and of one modality, such as text alone.

    The batches stand in random order. The first has the longest sample, so that a lack of memory shows at once. The
    last ones have what is left over of each modality.

    Args:
        lengths: the number of tokens of each sample, [samples] integers.
        modality: what each sample shows, [samples] integers or bool. Samples of equal numbers stand together.
        batch_size: samples of one optimizer step, over all ranks and micro-batches.
        seed, epoch: as for `SampleOrder`.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        modality: np.ndarray,
        batch_size: int,
        seed: int,
        epoch: Callable[[], int],
    ):
        super().__init__(len(lengths), seed, epoch)
        self._lengths, self._modality, self._batch_size = lengths, modality, batch_size

    def indices(self, generator: torch.Generator) -> list[int]:
        batches: list[list[int]] = []
        left_over: list[int] = []
        for modality in np.unique(self._modality)[::-1]:
            members = np.flatnonzero(self._modality == modality).tolist()
            lengths = self._lengths[members].tolist()
            grouped = get_length_grouped_indices(lengths, self._batch_size, generator=generator)
            cut = [
                [members[place] for place in grouped[start : start + self._batch_size]]
                for start in range(0, len(members), self._batch_size)
            ]
            left_over += cut.pop() if len(cut[-1]) < self._batch_size else []
            batches += cut
        order = torch.randperm(len(batches), generator=generator).tolist()
        if batches:
            order.remove(longest := max(range(len(batches)), key=lambda number: self._longest(batches[number])))
            order.insert(0, longest)
        return [index for number in order for index in batches[number]] + left_over

    def _longest(self, samples: list[int]) -> int:
        """Returns the length of the longest of `samples`."""
        return int(self._lengths[samples].max())


class OrderedTrainer(Trainer):
    """A trainer that takes the samples in a `SampleOrder`, and finds the order again when it continues.

    A checkpoint that is damaged, or cannot be written, is named by UserError and OSError.
    """

    def epoch(self) -> int:
        """Returns the number of the epoch that is being trained, from 0."""
        return int(self.state.epoch or 0)

    def _get_train_sampler(self, train_dataset=None) -> SampleOrder:
        return SampleOrder(len(self.train_dataset), self.args.seed, self.epoch)

    def _save_checkpoint(self, *args, **kwargs):
        with writing(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint, *args, **kwargs):
        with reading_checkpoint(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint):
        with reading_checkpoint(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint):
        with reading_checkpoint(checkpoint):
            super()._load_rng_state(checkpoint)
