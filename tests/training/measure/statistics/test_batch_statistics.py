"""Statistics in blocks of rows equal those of whole matrices, and their memory grows with the tokens alone."""

from itertools import pairwise

import pytest
import torch

import training.measure.statistics.batch_statistics
import training.measure.statistics.dense_forward
from data.collator import pictures_of
from modeling.visual_flops import DecoderShape
from tests.live_bytes import LiveBytes
from tests.tiny_student import tiny_batch, tiny_student
from tests.training.measure.statistics.full_matrices import statistics_of_full_matrices
from training.measure.statistics.batch_statistics import batch_statistics, calibration_bytes

NUM_HEADS = 4


def in_blocks_of(monkeypatch, num_rows: int) -> None:
    for module in ("dense_forward", "batch_statistics"):
        monkeypatch.setattr(getattr(training.measure.statistics, module), "BLOCK_ROWS", num_rows)


@pytest.mark.parametrize("num_rows", [1, 7, 128])
@pytest.mark.parametrize("num_kv_heads", [2, NUM_HEADS])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_blocks_equal_whole_matrices(monkeypatch, num_rows, num_kv_heads, padding_side):
    model, batch = tiny_student(3, num_kv_heads), tiny_batch((1, 3, 2), padding_side=padding_side)
    in_blocks_of(monkeypatch, num_rows)
    found, expected = batch_statistics(model, batch), statistics_of_full_matrices(model, batch)
    for name, value in expected._asdict().items():
        torch.testing.assert_close(getattr(found, name), value, rtol=2e-5, atol=1e-6)


def test_the_models_own_forward_ends_at_the_decoder():
    model, batch, run = tiny_student(2), tiny_batch((1, 2)), []
    for layer in model.model.language_model.layers:
        layer.register_forward_hook(lambda *_: run.append("layer"))
    model.vision_tower.register_forward_hook(lambda *_: run.append("tower"))
    batch_statistics(model, batch)
    assert run == ["tower"]
    model(**batch)
    assert run == ["tower", "tower", "layer", "layer"], "later forwards go on as ever"


def measured(monkeypatch, model, batch: dict, statistics=batch_statistics) -> LiveBytes:
    """Returns the memory that the statistics of a batch take beside the model and the features of its pictures."""
    features = model.encode_pictures(pictures_of(batch))
    monkeypatch.setattr(model, "encode_pictures", lambda pictures: features)
    with LiveBytes() as memory:
        statistics(model, batch)
    return memory


@pytest.mark.parametrize(("statistics", "is_linear"), [(batch_statistics, True), (statistics_of_full_matrices, False)])
def test_memory_is_linear_in_tokens(monkeypatch, statistics, is_linear):
    in_blocks_of(monkeypatch, 32)
    batches = [tiny_batch((num_images,)) for num_images in (20, 40, 80)]
    memories = [measured(monkeypatch, tiny_student(1), batch, statistics) for batch in batches]
    squares = [batch["input_ids"].shape[1] ** 2 for batch in batches]
    assert all((memory.largest < square) == is_linear for memory, square in zip(memories, squares, strict=True))
    assert all((after.peak < 2.1 * before.peak) == is_linear for before, after in pairwise(memories))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("batch_size", "num_images", "num_rows"), [(1, 40, 32), (3, 5, 128)])
def test_the_formula_holds_what_was_counted(monkeypatch, batch_size, num_images, num_rows, dtype):
    in_blocks_of(monkeypatch, num_rows)
    model, batch = tiny_student(2).to(dtype), tiny_batch((num_images,) * batch_size)
    memory = measured(monkeypatch, model, batch | {"pixel_values": batch["pixel_values"].to(dtype)})
    formula = calibration_bytes(
        DecoderShape.from_config(model.config.text_config), batch_size, batch["input_ids"].shape[1], dtype.itemsize
    )
    assert memory.peak <= formula <= 2 * memory.peak, (memory.peak, formula)
