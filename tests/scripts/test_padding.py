"""scripts/padding.py: the share of padding that it counts is that of the batches that the collator makes."""

from types import SimpleNamespace

import numpy as np
import pytest
from torch.utils.data import BatchSampler

from data.collator import AllMediaInEveryBatch, Collator
from scripts.padding import padding_share
from tests.tiny_student import single_samples, tiny_batch
from training.distillation.sample_order import GroupedOrder, SampleOrder

PICTURES = (1, 0, 2, 1, 0, 0, 1, 2, 0, 1)
SAMPLES = [
    {name: value if name == "pixel_values" else value[0] for name, value in sample.items()}
    for sample in single_samples(tiny_batch(PICTURES))
]
LENGTHS, HAS_PICTURE = np.array([len(sample["input_ids"]) for sample in SAMPLES]), np.array(PICTURES) > 0
ORDERS = {
    "random": SampleOrder(10, 0, lambda: 0),
    "grouped": GroupedOrder(LENGTHS, HAS_PICTURE, 4, 0, lambda: 0),
}


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("name", ORDERS)
def test_padding_is_that_of_the_collator(name, filled):
    collate = Collator(SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0)))
    if filled:
        with_picture = [sample for sample in SAMPLES if "pixel_values" in sample]
        collate = AllMediaInEveryBatch(collate, [min(with_picture, key=lambda sample: len(sample["input_ids"]))])
    batches = [collate([SAMPLES[index] for index in batch]) for batch in BatchSampler(ORDERS[name], 2, drop_last=False)]
    expected = 1 - sum(LENGTHS) / sum(batch["input_ids"].numel() for batch in batches)
    assert padding_share(ORDERS[name], LENGTHS, HAS_PICTURE, 2, filled) == pytest.approx(expected)


def test_grouped_batches_hold_less_of_it():
    random, grouped = (padding_share(order, LENGTHS, HAS_PICTURE, 2, filled=False) for order in ORDERS.values())
    assert grouped < random
