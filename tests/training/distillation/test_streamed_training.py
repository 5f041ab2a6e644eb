"""A training on a stream, stopped in the middle, goes on at the same sample."""

from itertools import permutations

import pytest
from transformers import TrainerCallback

from data.sources.source import Source
from data.streaming import StreamedDataset
from tests.data.sources.layouts import write_rows
from tests.tiny_processor import tiny_processor
from tests.training.distillation.test_trainer import trainer
from training.distillation.callbacks import read_metrics

ANSWERS = ("a", "b", "c", "d", "e", "f", "g")
WORDS = ("USER", "ASSISTANT", ":", "ask", *ANSWERS)
"""All words, as the student takes the token of an unknown word for a picture."""
STEPS, STOPPED_AT, SAVED_AT = 20, 12, 8


class Kill(TrainerCallback):
    """Ends a training after a step, without a checkpoint."""

    def __init__(self, last_step):
        self.last_step = last_step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.last_step:
            raise KeyboardInterrupt


@pytest.fixture
def shards(tmp_path):
    rows = [
        {"conversations": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": f"{first} {second}"}]}
        for first, second in permutations(ANSWERS, 2)
    ]
    for name, part in (("0", rows[:9]), ("1", rows[9:])):
        (tmp_path / name).mkdir()
        write_rows(part, tmp_path / name, "jsonl")
    return Source(path=tmp_path / "*" / "rows.jsonl", streaming=True)


def begin(folder, shards, *callbacks, seed=0, **settings):
    dataset = StreamedDataset(
        [shards],
        tiny_processor(vocab_words=WORDS),
        max_length=99,
        seed=seed,
        on_bad_sample="error",
        max_bad_share=0,
        max_too_long_share=0,
        part=(0, 1),
    )
    settings = {"max_steps": STEPS, "save_steps": SAVED_AT, "micro_batch_size": 2} | settings
    return trainer(folder, dataset=dataset, callbacks=callbacks, **settings)


def losses(folder) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_stopped_training_goes_on_at_the_same_sample(tmp_path, shards, workers):
    begin(tmp_path / "whole", shards).train()
    whole = losses(tmp_path / "whole")
    assert len(whole) == STEPS
    with pytest.raises(KeyboardInterrupt):
        begin(tmp_path / "cut", shards, Kill(STOPPED_AT), num_workers=workers).train()
    begin(tmp_path / "cut", shards, num_workers=workers).train()
    assert losses(tmp_path / "cut") == pytest.approx(whole, rel=1e-5)
    begin(tmp_path / "other", shards, seed=1).train()
    assert losses(tmp_path / "other") != pytest.approx(whole, rel=1e-2), "any samples would give these losses"
