"""Mixtures and the dataset made of them: complete, deterministic, interleaved; what is left out is counted."""

import json
from collections import Counter

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from transformers import LlavaProcessor

from data.conversations import encode
from data.dataset import ConversationDataset
from data.mixture import build_mixture, draw_samples
from data.sample import Sample
from data.sources.source import Source
from modeling.user_error import UserError
from tests.families.qwen2_vl import QWEN2_VL
from tests.tiny_processor import tiny_processor


@pytest.fixture
def source(tmp_path):
    """source(name, count, …) writes a file of that many rows with one picture each, and gives its Source."""
    Image.new("RGB", (24, 24), "red").save(tmp_path / "red.png")

    def source(name, count, images=None, **amount):
        rows = [
            {
                "id": f"{name}{index}",
                "image": (images or {}).get(index, "red.png"),
                "conversations": [
                    {"from": "human", "value": "<image>\nred ?" + " is" * index},
                    {"from": "gpt", "value": "yes"},
                ],
            }
            for index in range(count)
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        return Source(path=tmp_path / f"{name}.json", images=tmp_path, **amount)

    return source


def ids(samples):
    return [sample.id for sample in samples]


def test_one_source_is_covered_and_shuffled(source):
    samples, bad = draw_samples([source("a", 20)], seed=0)
    assert sorted(ids(samples)) == sorted(f"a{i}" for i in range(20))
    assert ids(samples) != [f"a{i}" for i in range(20)]
    assert bad == []


def test_the_seed_decides(source):
    sources = [source("a", 20), source("b", 10, num_samples=5)]
    assert draw_samples(sources, seed=3) == draw_samples(sources, seed=3)
    assert draw_samples(sources, seed=3) != draw_samples(sources, seed=4)


def test_sources_run_in_proportion(source):
    samples, _ = draw_samples([source("a", 30), source("b", 10), source("c", 20)], seed=0)
    for start in range(0, 60, 12):
        window = Counter(sample.id[0] for sample in samples[start : start + 12])
        assert all(abs(window[name] - expected) <= 1 for name, expected in {"a": 6, "b": 2, "c": 4}.items())


@pytest.mark.parametrize("weight, expected", [(0.5, [0, 1]), (1.0, [1]), (2.0, [2]), (2.5, [2, 3])])
def test_weight_is_the_number_of_uses(source, weight, expected):
    samples, _ = draw_samples([source("a", 10, weight=weight)], seed=0)
    uses = Counter(ids(samples))
    assert len(samples) == 10 * weight
    assert sorted({uses[f"a{i}"] for i in range(10)}) == expected


def test_num_samples(source):
    samples, _ = draw_samples([source("a", 10, num_samples=4)], seed=0)
    assert len(set(ids(samples))) == 4


def test_more_samples_than_there_are(source):
    with pytest.raises(UserError, match="a.json: num_samples is 11, but there are 10 good samples"):
        draw_samples([source("a", 10, num_samples=11)], seed=0)


@pytest.mark.parametrize(
    "amount, message",
    [
        ({"weight": 1.0, "num_samples": 3}, "give weight or num_samples, not both; got 1.0 and 3"),
        ({"weight": 0}, "greater than 0"),
        ({"num_samples": 0}, "greater than 0"),
        ({"wieght": 1.0}, "Extra inputs are not permitted"),
    ],
)
def test_source_fields_are_checked(amount, message):
    with pytest.raises(ValidationError, match=message):
        Source(path="a.json", images=".", **amount)


def test_items_are_the_encoded_samples(source):
    processor = tiny_processor()
    dataset = build_mixture([source("a", 6)], processor, max_length=99, seed=0)
    assert len(dataset) == 6
    for index, (sample, length, item) in enumerate(zip(dataset.samples, dataset.lengths, dataset, strict=True)):
        expected = encode(sample, processor, 99)
        assert item.keys() == expected.keys()
        assert all(torch.equal(item[key], expected[key]) for key in expected)
        assert length == len(item["input_ids"])
        tokens = dataset.tokens(index)
        assert item.keys() - tokens.keys() == {"pixel_values"}
        assert all(torch.equal(item[key], tokens[key]) for key in tokens)


def test_too_long_samples_are_left_out_and_counted(source):
    length = 2 + 9 + 2 + 2 + 2  # of row 0; each row is a token longer than the one before
    dataset = build_mixture([source("a", 6)], tiny_processor(), max_length=length + 3, seed=0)
    assert sorted(ids(dataset.samples)) == ["a0", "a1", "a2", "a3"]
    assert max(dataset.lengths) == length + 3
    assert sorted(entry.reason for entry in dataset.too_long) == [
        "sample 'a4': 21 tokens, at most 20 are allowed",
        "sample 'a5': 22 tokens, at most 20 are allowed",
    ]
    assert dataset.bad == []


def test_no_sample_left(source):
    with pytest.raises(UserError, match="no sample is left of 6: 6 have more than 5 tokens, 0 are bad"):
        build_mixture([source("a", 6)], tiny_processor(), max_length=5, seed=0)


@pytest.fixture
def broken(source, tmp_path):
    """A source of 10 with an image that is missing, one that is no picture, and one that breaks off."""
    Image.effect_noise((64, 64), 90).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no picture")
    return source("a", 10, images={2: "missing.png", 5: "text.png", 7: "cut.png"})


def test_bad_samples_skipped(broken):
    dataset = build_mixture([broken], tiny_processor(), max_length=99, seed=0, on_bad_sample="skip", max_bad_share=0.25)
    assert sorted(ids(dataset.samples)) == [f"a{i}" for i in (0, 1, 3, 4, 6, 8, 9)]
    reasons = {entry.id: entry.reason for entry in dataset.bad}
    assert "row 2 (id 'a2'): image 'missing.png' is not a file" in reasons["a2"]
    assert "sample 'a5': image" in reasons["a5"] and "not a picture" in reasons["a5"]
    assert "sample 'a7': image" in reasons["a7"] and "truncated or corrupt" in reasons["a7"]


def test_share_of_bad_samples_among_those_encoded(broken):
    with pytest.raises(
        UserError, match="2 of 9 samples are bad, at most a share of 0.2 is allowed; the first: sample 'a"
    ):
        build_mixture([broken], tiny_processor(), max_length=99, seed=0, on_bad_sample="skip", max_bad_share=0.2)


def test_bad_picture_is_an_error_by_default(source, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match="sample 'a1': image '.*text.png' is not a picture"):
        build_mixture([source("a", 3, images={1: "text.png"})], tiny_processor(), max_length=99, seed=0)


def test_picture_that_breaks_off_is_an_error_when_fetched(source, tmp_path):
    Image.effect_noise((64, 64), 90).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    samples, _ = draw_samples([source("a", 2, images={1: "cut.png"})], seed=0)
    dataset = ConversationDataset(sorted(samples, key=lambda sample: sample.id), tiny_processor(), max_length=99)
    assert dataset[0]["pixel_values"].shape == (1, 3, 24, 24)
    with pytest.raises(UserError, match="sample 'a1': image '.*cut.png' is truncated or corrupt"):
        dataset[1]


def test_gigantic_picture(source, tmp_path):
    Image.new("RGB", (100, 100)).save(tmp_path / "large.png")
    with pytest.raises(UserError, match=r"sample 'a1': .*large.png' is too large \(100 x 100 pixels\); at most 9999"):
        build_mixture(
            [source("a", 2, images={1: "large.png"})], tiny_processor(), max_length=99, seed=0, max_pixels=9999
        )


def test_text_samples_need_no_picture():
    samples = [Sample("t", (), (("is", "no"),))] * 3
    dataset = ConversationDataset(samples, tiny_processor(), max_length=99)
    assert len(dataset) == 3 and dataset[0].keys() == {"input_ids", "labels"}


def test_the_processor_is_checked_when_the_dataset_is_built(source):
    class OtherProcessor(LlavaProcessor):
        def __call__(self, text, **options):
            return super().__call__(text=text + " yes", **options)

    processor = tiny_processor()
    processor.__class__ = OtherProcessor
    with pytest.raises(UserError, match="OtherProcessor is not supported"):
        build_mixture([source("a", 2)], processor, max_length=99, seed=0)


def test_a_picture_that_is_a_line_is_a_bad_sample(source, tmp_path):
    Image.new("RGB", (500, 1)).save(tmp_path / "line.png")
    options = {"max_length": 200, "seed": 0, "max_bad_share": 0.5}
    processor = QWEN2_VL.processor()
    lined = source("a", 2, images={1: "line.png"})
    with pytest.raises(UserError, match=r"sample 'a1': .*line.png' is too long \(500 x 1 pixels\)"):
        build_mixture([lined], processor, **options)
    dataset = build_mixture([lined], processor, on_bad_sample="skip", **options)
    assert ids(dataset.samples) == ["a0"] and [bad.id for bad in dataset.bad] == ["a1"]
