"""Batches: padded on the side asked for, pictures strung together in order, nothing lost."""

import pytest
import torch
from PIL import Image

from data.collator import AllMediaInEveryBatch, Collator, predicts_answer
from data.conversations import encode, encode_prompt
from data.sample import Sample
from modeling.user_error import UserError
from tests.tiny_processor import tiny_processor


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Samples with 1, 0 and 2 images, of different lengths."""
    folder = tmp_path_factory.mktemp("pictures")
    for colour in ("red", "lime", "blue"):
        Image.new("RGB", (24, 24), colour).save(folder / f"{colour}.png")
    return [
        Sample("one", (folder / "lime.png",), (("<image> is there a cross?", "yes"),)),
        Sample("none", (), (("is there a cross?", "no"), ("a square?", "yes"))),
        Sample("two", (folder / "blue.png", folder / "red.png"), (("<image> <image> red?", "yes"),)),
    ]


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding(samples, side):
    processor = tiny_processor()
    encoded = [encode(sample, processor, 99) for sample in samples]
    batch = Collator(processor, padding_side=side)(encoded)
    length = max(len(sample["input_ids"]) for sample in encoded)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == (3, length)
    assert all(batch[key].dtype == torch.int64 for key in ("input_ids", "labels", "attention_mask"))
    for row, sample in enumerate(encoded):
        own = len(sample["input_ids"])
        real, pad = (
            (slice(0, own), slice(own, None))
            if side == "right"
            else (slice(length - own, None), slice(0, length - own))
        )
        assert torch.equal(batch["input_ids"][row, real], sample["input_ids"])
        assert torch.equal(batch["labels"][row, real], sample["labels"])
        assert batch["attention_mask"][row, real].all()
        assert (batch["input_ids"][row, pad] == processor.tokenizer.pad_token_id).all()
        assert (batch["labels"][row, pad] == -100).all()
        assert not batch["attention_mask"][row, pad].any()


def test_pictures_in_the_order_of_the_samples(samples):
    processor = tiny_processor()
    batch = Collator(processor)([encode(sample, processor, 99) for sample in samples])
    assert batch["pixel_values"].shape == (3, 3, 24, 24)
    assert batch["pixel_values"].mean((2, 3)).argmax(1).tolist() == [1, 2, 0]  # lime, blue, red


def test_pictures_after_a_text_sample(samples):
    processor = tiny_processor()
    batch = Collator(processor)([encode(samples[index], processor, 99) for index in (1, 2)])
    assert batch["pixel_values"].shape == (2, 3, 24, 24)
    assert batch["labels"].shape == batch["input_ids"].shape


def test_no_pictures(samples):
    processor = tiny_processor()
    batch = Collator(processor)([encode(samples[1], processor, 99)] * 2)
    assert batch.keys() == {"input_ids", "attention_mask", "labels"}


def test_prompts_end_together(samples):
    processor = tiny_processor()
    batch = Collator(processor, padding_side="left")([encode_prompt(sample, processor) for sample in samples])
    assert batch.keys() == {"input_ids", "attention_mask", "pixel_values"}
    assert processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][:, -2]) == ["ASSISTANT"] * 3
    assert batch["attention_mask"][:, -1].all()


def test_other_keys_of_the_image_processor_are_kept(samples):
    processor = tiny_processor()
    encoded = [encode(sample, processor, 99) for sample in samples]
    encoded[0]["image_sizes"] = torch.tensor([[24, 24]])
    encoded[2]["image_sizes"] = torch.tensor([[10, 20], [30, 40]])
    assert Collator(processor)(encoded)["image_sizes"].tolist() == [[24, 24], [10, 20], [30, 40]]


def test_tiles_are_filled_up_to_the_most(samples):
    """Pictures [images, tiles, 3, H, W]: as the image processor of LLaVA-NeXT fills them up within a sample."""
    processor = tiny_processor()
    encoded = [encode(sample, processor, 99) for sample in samples]
    encoded[0]["pixel_values"], encoded[2]["pixel_values"] = torch.rand(1, 5, 3, 4, 4), torch.rand(2, 3, 3, 4, 4)
    found = Collator(processor)(encoded)["pixel_values"]
    assert torch.equal(found[:1], encoded[0]["pixel_values"])
    assert torch.equal(found[1:, :3], encoded[2]["pixel_values"]) and found.shape == (3, 5, 3, 4, 4)
    assert not found[1:, 3:].any()


def test_samples_are_left_as_they_were(samples):
    processor = tiny_processor()
    encoded = [encode(sample, processor, 99) for sample in samples]
    keys = [set(sample) for sample in encoded]
    collate = Collator(processor)
    first, second = collate(encoded), collate(encoded)
    assert keys == [set(sample) for sample in encoded]
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_tokenizer_without_pad_token():
    processor = tiny_processor()
    processor.tokenizer.pad_token = None
    with pytest.raises(UserError, match="no pad token"):
        Collator(processor)


# ---- a picture in every batch ----


def test_a_batch_without_pictures_gets_one_row_that_has_one(samples):
    processor = tiny_processor()
    one, none, _ = (encode(sample, processor, 99) for sample in samples)
    collate, plain = AllMediaInEveryBatch(Collator(processor), [one]), Collator(processor)
    batch, alone = collate([none, none]), plain([none, none])
    assert batch["pixel_values"].shape == (1, 3, 24, 24) and "pixel_values" not in alone
    length = alone["input_ids"].shape[1]
    for key in ("input_ids", "labels", "attention_mask"):
        assert torch.equal(batch[key][:2, :length], alone[key]), key
    assert (batch["input_ids"][2] == processor.image_token_id).any() and batch["attention_mask"][2].any()
    assert (batch["labels"][2] == -100).all() and not predicts_answer(batch["labels"])[2].any()
    assert (one["labels"] != -100).any(), "the dataset's own sample keeps its labels"


def test_a_batch_with_a_picture_stays_as_it_is(samples):
    processor = tiny_processor()
    one, none, two = (encode(sample, processor, 99) for sample in samples)
    collate, plain = AllMediaInEveryBatch(Collator(processor), [one]), Collator(processor)
    for batch in ([one], [none, two], [two, none, one]):
        given, expected = collate(batch), plain(batch)
        assert given.keys() == expected.keys() and all(torch.equal(given[key], expected[key]) for key in expected)


def test_the_added_row_has_no_kept_logits(samples):
    processor = tiny_processor()
    one, none, _ = (encode(sample, processor, 99) for sample in samples)
    one["teacher_logits"], none["teacher_logits"] = torch.ones(3, 7), torch.zeros(2, 7)
    batch = AllMediaInEveryBatch(Collator(processor), [one])([none])
    assert torch.equal(batch["teacher_logits"], torch.zeros(2, 7))
