"""What a training's logs say of its speed: counted over ranks, without padding, without waiting for the device."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from data.collator import AllMediaInEveryBatch, Collator
from tests.tiny_student import single_samples, tiny_batch
from tests.training.distillation.test_trainer import DATASET, trainer
from training.distillation.callbacks import read_metrics
from training.distillation.monitoring import throughput
from training.distillation.monitoring.throughput import Throughput

LENGTHS = [len(sample["input_ids"]) for sample in DATASET]


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock.seconds)
    return clock


def test_samples_and_tokens_are_counted_without_padding(clock):
    counter = Throughput(Accelerator(cpu=True), step=10, num_steps=50)
    batches = [tiny_batch((1, 0, 2)), tiny_batch((1, 1), seed=1)]
    counter.count(batches)
    clock.seconds = 4.0
    found = counter.since_last_log(step=20)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    slots = sum(batch["input_ids"].numel() for batch in batches)
    assert tokens < slots
    assert found["samples_per_second"] == 5 / 4 and found["tokens_per_second"] == tokens / 4
    assert found["padding_share"] == pytest.approx(1 - tokens / slots)
    assert found["seconds_left"] == 4.0 / 10 * 30
    assert 2**20 < found["peak_memory_bytes"] < 2**40
    counter.count(batches[:1])
    clock.seconds = 6.0
    assert counter.since_last_log(step=21)["samples_per_second"] == 3 / 2, "earlier steps are not counted again"


def test_a_row_that_was_added_for_its_picture_is_padding(clock):
    samples = [
        {name: value if name == "pixel_values" else value[0] for name, value in sample.items()}
        for sample in single_samples(tiny_batch((1, 0, 0)))
    ]
    collate = AllMediaInEveryBatch(Collator(SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0))), [samples[0]])
    counter = Throughput(Accelerator(cpu=True), 0, 1)
    counter.count([collate(samples[1:])])
    clock.seconds = 1.0
    found = counter.since_last_log(step=1)
    tokens = sum(len(sample["input_ids"]) for sample in samples[1:])
    assert found["samples_per_second"] == 2 and found["tokens_per_second"] == tokens
    assert found["padding_share"] == pytest.approx(1 - tokens / (3 * len(samples[0]["input_ids"])))


class Reads(TorchDispatchMode):
    """Counts how often a value is read from a tensor, for which a GPU's steps would wait."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **kwargs or {})


def test_counting_reads_nothing_from_the_device():
    counter = Throughput(Accelerator(cpu=True), 0, 1)
    with Reads() as reads:
        counter.count([tiny_batch((1, 0, 2))])
        assert reads.count == 0
        torch.ones(1).item()
        assert reads.count == 1


def test_ranks_add_up(clock):
    """Both ranks in one process: each is handed what the other gathers."""
    gathered: list[torch.Tensor] = []

    def gather(own: torch.Tensor) -> torch.Tensor:
        gathered.append(own.clone())
        return torch.cat(gathered)

    ranks = [Throughput(SimpleNamespace(device=torch.device("cpu"), gather=gather), 0, 1) for _ in range(2)]
    images = ((1, 0, 2), (1,))
    for number, counter in enumerate(ranks):
        counter.count([tiny_batch(images[number])])
    clock.seconds = 2.0
    ranks[0].since_last_log(step=1)
    gathered[0][0, 3] = 2**50  # the first rank's memory
    found = ranks[1].since_last_log(step=1)
    tokens = sum(int(tiny_batch(each)["attention_mask"].sum()) for each in images)
    assert found["samples_per_second"] == 4 / 2 and found["tokens_per_second"] == tokens / 2
    assert found["peak_memory_bytes"] == 2**50, "the largest, not the sum"


def test_every_log_of_a_training_has_it(tmp_path):
    trainer(tmp_path, max_steps=2, micro_batch_size=4, gradient_accumulation_steps=2).train()
    *rows, summary = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["tokens_per_second"] / row["samples_per_second"] == pytest.approx(sum(LENGTHS) / 8)
        assert 0 < row["padding_share"] < 1 and row["peak_memory_bytes"] > 0
    assert rows[0]["seconds_left"] > 0 == rows[1]["seconds_left"]
    assert "tokens_per_second" not in summary
