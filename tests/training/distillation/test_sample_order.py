"""The order of samples: a permutation decided by seed and epoch, found again by any process at any step."""

import random

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, SeedableRandomSampler, skip_first_batches
from torch.utils.data import BatchSampler, Dataset
from transformers import TrainerCallback

from tests.training.distillation.test_trainer import DATASET, trainer
from training.distillation.sample_order import GroupedOrder, SampleOrder

COUNT, STEP = 203, 16
_rng = random.Random(0)
HAS_PICTURE = [_rng.random() < 0.8 for _ in range(COUNT)]
LENGTHS = [_rng.randint(600, 900) if found else _rng.randint(20, 2000) for found in HAS_PICTURE]


def random_order(seed: int = 5, epoch: int = 0) -> SampleOrder:
    return SampleOrder(COUNT, seed, lambda: epoch)


def grouped_order(seed: int = 5, epoch: int = 0) -> GroupedOrder:
    return GroupedOrder(np.array(LENGTHS), np.array(HAS_PICTURE), STEP, seed, lambda: epoch)


both = pytest.mark.parametrize("order", [random_order, grouped_order])


def batches(indices, size: int = STEP) -> list[list[int]]:
    return list(BatchSampler(indices, size, drop_last=False))


def padding(indices, size: int) -> float:
    slots = [max(LENGTHS[index] for index in batch) * len(batch) for batch in batches(indices, size)]
    return 1 - sum(LENGTHS) / sum(slots)


@both
def test_seed_and_epoch_decide_a_permutation(order):
    first = list(order())
    assert sorted(first) == list(range(COUNT)) == list(range(len(order())))
    assert list(order()) == first, "the same seed and epoch give the same order"
    assert list(order(epoch=1)) != first != list(order(seed=6))


def test_the_random_order_is_that_of_transformers():
    theirs = SeedableRandomSampler(range(COUNT), data_seed=5)
    for epoch in (0, 1):
        assert list(theirs) == list(random_order(epoch=epoch))


def test_a_batch_has_one_kind_and_similar_lengths():
    order = batches(list(grouped_order()))
    kinds = [{HAS_PICTURE[index] for index in batch} for batch in order]
    mixed = [number for number, found in enumerate(kinds) if len(found) > 1]
    left_over = sum(HAS_PICTURE) % STEP + HAS_PICTURE.count(False) % STEP
    assert min(mixed) >= COUNT // STEP - left_over // STEP, "only what is left over is mixed, and it comes last"
    assert any(len({HAS_PICTURE[index] for index in batch}) > 1 for batch in batches(list(random_order()))[:8])
    for size in (2, 4):
        assert padding(grouped_order(), size) < 0.5 * padding(random_order(), size)


def test_batches_come_in_random_order_after_the_one_with_the_longest_sample():
    order = batches(list(grouped_order()))
    assert max(LENGTHS) in [LENGTHS[index] for index in order[0]]
    longest = [max(LENGTHS[index] for index in batch) for batch in order]
    assert longest != sorted(longest, reverse=True)
    assert len({tuple(batches(list(grouped_order(epoch=epoch)))[0]) for epoch in range(4)}) > 1


def test_data_of_one_kind_and_data_of_less_than_a_batch():
    for has_picture in ([True] * 40, [False] * 40, [True, False] * 3):
        order = GroupedOrder(np.array(LENGTHS[: len(has_picture)]), np.array(has_picture), STEP, 5, lambda: 0)
        assert sorted(order) == list(range(len(has_picture)))


# ---- several processes ----


def loaded(sampler, processes: int, rank: int, micro_batch_size: int = 4, epoch: int = 0, skipped: int = 0):
    """The batches that a rank gets as transformers.Trainer asks for them, after `skipped` batches of a killed run."""
    shard = BatchSamplerShard(BatchSampler(sampler, micro_batch_size, drop_last=False), processes, rank)
    loader = DataLoaderShard(range(COUNT), batch_sampler=shard, collate_fn=list)
    if skipped:
        loader = skip_first_batches(loader, skipped)
    loader.set_epoch(epoch)
    return list(loader)


@both
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_ranks_share_an_epoch(order, processes):
    shares = [loaded(order(), processes, rank) for rank in range(processes)]
    found = [index for share in shares for batch in share for index in batch]
    assert set(found) == set(range(COUNT))
    whole_batches = -(-COUNT // (4 * processes)) * 4 * processes
    assert len(found) <= whole_batches, "samples are repeated only to fill the last batch"
    steps = [{index for batch in step for index in batch} for step in zip(*shares, strict=True)]
    assert steps == [set(batch) for batch in batches(list(order()), 4 * processes)[:-1]] + steps[-1:]


@both
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_rank_that_continues_gets_the_batches_it_would_have_had(order, processes, epoch):
    for rank in range(processes):
        whole = loaded(order(epoch=epoch), processes, rank, epoch=epoch)
        assert loaded(order(epoch=epoch), processes, rank, epoch=epoch, skipped=7) == whole[7:]


def test_the_library_alone_would_continue_with_another_epochs_batches():
    """The negative control, and the reason for a sampler of our own also for the random order."""
    whole = loaded(SeedableRandomSampler(range(COUNT), data_seed=5), 2, 0, epoch=2)
    continued = loaded(SeedableRandomSampler(range(COUNT), data_seed=5), 2, 0, epoch=2, skipped=7)
    assert continued != whole[7:]


# ---- in a training ----


class Watched(Dataset):
    """Remembers which samples were asked for. The attributes are those of a `ConversationDataset`."""

    def __init__(self):
        self.modality = np.array(["pixel_values" in sample for sample in DATASET])
        self.lengths = np.array([len(sample["input_ids"]) for sample in DATASET])
        self.asked: list[int] = []

    def __len__(self):
        return len(DATASET)

    def __getitem__(self, index):
        self.asked.append(index)
        return DATASET[index]


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 7:
            raise KeyboardInterrupt


@pytest.mark.parametrize("grouped", [False, True])
def test_a_training_that_was_killed_in_its_second_epoch_goes_on_with_the_same_samples(tmp_path, grouped):
    def train(folder, callbacks=()) -> list[int]:
        dataset = Watched()
        one = trainer(tmp_path / folder, dataset=dataset, callbacks=callbacks, max_steps=10, save_steps=5,
                      micro_batch_size=2, group_by_modality_length=grouped)  # fmt: skip
        try:
            one.train()
        except KeyboardInterrupt:
            assert callbacks
        return dataset.asked

    whole = train("whole")
    train("killed", [Kill()])
    assert train("killed") == whole[10:]  # five steps of two samples are in the checkpoint
    assert whole[:8] != whole[8:16] and sorted(whole[:8]) == sorted(whole[8:16]) == list(range(8))
    if grouped:
        kinds = [[DATASET[index].keys() for index in batch] for batch in batches(whole, 2)]
        assert sum(first != second for first, second in kinds) == 0, "six samples have pictures and two have none"


def test_batches_are_of_one_modality_of_four():
    rng = np.random.default_rng(0)
    lengths, modality = rng.integers(5, 50, 203), rng.integers(0, 4, 203)
    order = list(GroupedOrder(lengths, modality, 8, 0, lambda: 0))
    assert sorted(order) == list(range(203))
    kinds = [set(modality[order[start : start + 8]]) for start in range(0, 203, 8)]
    left_over = sum(int((modality == kind).sum()) % 8 for kind in range(4))
    whole = (203 - left_over) // 8
    assert all(len(kind) == 1 for kind in kinds[:whole]) and whole > 15
    as_bool = list(GroupedOrder(lengths, modality > 0, 8, 0, lambda: 0))
    assert as_bool == list(GroupedOrder(lengths, (modality > 0).astype(np.int8), 8, 0, lambda: 0)) != order
