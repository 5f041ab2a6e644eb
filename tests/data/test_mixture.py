"""Mixtures and the dataset made of them: complete, deterministic, interleaved; what is left out is counted."""

import json
import random
from collections import Counter

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from transformers import LlavaProcessor

from data.conversations import encode
from data.index.build import build_indexes
from data.index.index import open_indexes
from data.mixture import build_mixture, draw
from data.sample import Sample
from data.sources.reading import load_samples
from data.sources.source import Source
from modeling.user_error import UserError
from tests.families.qwen2_vl import QWEN2_VL
from tests.indexed import indexed
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


@pytest.fixture
def indexes(tmp_path):
    """indexes(sources, …) gives their indexes."""

    def indexes(sources, processor=None, decode=False, **options):
        paths = build_indexes(sources, processor or tiny_processor(), tmp_path / "data", decode=decode, **options)
        return open_indexes(sources, paths)

    return indexes


@pytest.fixture
def mix(indexes):
    """mix(sources, …) gives the dataset of a mixture and what is left out of it."""

    def mix(sources, processor=None, decode=False, max_length=99, **options):
        processor = processor or tiny_processor()
        return build_mixture(
            indexes(sources, processor, decode=decode), processor, max_length=max_length, seed=0, **options
        )

    return mix


def drawn_ids(indexes, seed=0):
    numbers, rows = draw(indexes, seed=seed)
    return [indexes[number].sample(row).id for number, row in zip(numbers.tolist(), rows.tolist(), strict=True)]


def drawn_one_by_one(sources, seed):
    """The slow reference: the samples themselves are drawn, and sorted by their places."""
    positioned = []
    for number, source in enumerate(sources):
        samples, rng, drawn = load_samples(source)[0], random.Random(f"{seed} {number}"), []
        count = source.num_samples or max(1, round((source.weight or 1.0) * len(samples)))
        while len(drawn) < count:
            drawn += rng.sample(samples, min(len(samples), count - len(drawn)))
        positioned += [((place + 0.5) / count, number, sample.id) for place, sample in enumerate(drawn)]
    return [sample_id for _, _, sample_id in sorted(positioned, key=lambda entry: entry[:2])]


def test_samples_are_drawn_as_one_by_one(source, indexes):
    sources = [source("a", 20), source("b", 10, num_samples=5), source("c", 7, weight=2.5), source("d", 9, weight=0.3)]
    for seed in (0, 3):
        assert drawn_ids(indexes(sources), seed) == drawn_one_by_one(sources, seed)
    assert drawn_ids(indexes(sources), 3) != drawn_one_by_one(sources, 4), "the negative control"


def test_one_source_is_covered_and_shuffled(source, indexes):
    drawn = drawn_ids(indexes([source("a", 20)]))
    assert sorted(drawn) == sorted(f"a{i}" for i in range(20))
    assert drawn != [f"a{i}" for i in range(20)]


def test_the_seed_decides(source, indexes):
    found = indexes([source("a", 20), source("b", 10, num_samples=5)])
    assert drawn_ids(found, seed=3) == drawn_ids(found, seed=3) != drawn_ids(found, seed=4)


def test_sources_run_in_proportion(source, indexes):
    drawn = drawn_ids(indexes([source("a", 30), source("b", 10), source("c", 20)]))
    for start in range(0, 60, 12):
        window = Counter(sample_id[0] for sample_id in drawn[start : start + 12])
        assert all(abs(window[name] - expected) <= 1 for name, expected in {"a": 6, "b": 2, "c": 4}.items())


@pytest.mark.parametrize("weight, expected", [(0.5, [0, 1]), (1.0, [1]), (2.0, [2]), (2.5, [2, 3])])
def test_weight_is_the_number_of_uses(source, indexes, weight, expected):
    uses = Counter(drawn_ids(indexes([source("a", 10, weight=weight)])))
    assert uses.total() == 10 * weight
    assert sorted({uses[f"a{i}"] for i in range(10)}) == expected


def test_num_samples(source, indexes):
    assert len(set(drawn_ids(indexes([source("a", 10, num_samples=4)])))) == 4


def test_more_samples_than_there_are(source, indexes):
    with pytest.raises(UserError, match="a.json: num_samples is 11, but there are 10 good samples"):
        draw(indexes([source("a", 10, num_samples=11)]), seed=0)


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


def test_items_are_the_encoded_samples(source, mix):
    processor = tiny_processor()
    dataset, _ = mix([source("a", 6), source("b", 3)], processor)
    assert len(dataset) == 9
    for index, (sample, length, item) in enumerate(zip(dataset.samples, dataset.lengths, dataset, strict=True)):
        expected = encode(sample, processor, 99)
        assert item.keys() == expected.keys()
        assert all(torch.equal(item[key], expected[key]) for key in expected)
        assert length == len(item["input_ids"])
        tokens = dataset.tokens(index)
        assert item.keys() - tokens.keys() == {"pixel_values"}
        assert all(torch.equal(item[key], tokens[key]) for key in tokens)


LENGTH = 2 + 9 + 2 + 2 + 2  # of row 0; each row is a token longer than the one before


def test_too_long_samples_are_left_out_and_counted(source, mix):
    dataset, left_out = mix([source("a", 6)], max_length=LENGTH + 3, max_too_long_share=0.34)
    assert sorted(ids(dataset.samples)) == ["a0", "a1", "a2", "a3"]
    assert max(dataset.lengths) == LENGTH + 3
    assert left_out.counts() == {"more than 20 tokens": 2}
    assert sorted((row["id"], row["row"], row["reason"]) for row in left_out.rows()) == [
        ("a4", 4, "21 tokens, at most 20 are allowed"),
        ("a5", 5, "22 tokens, at most 20 are allowed"),
    ]


def test_share_of_samples_that_are_too_long(source, mix):
    """It is a share of the samples that are drawn, and none may be too long where none is allowed."""
    message = r"2 of 6 samples have more than 20 tokens, at most a share of {} is allowed; the first: .*a.json: row \d "
    for share in (0.0, 0.33):
        with pytest.raises(UserError, match=message.format(share)):
            mix([source("a", 6)], max_length=LENGTH + 3, max_too_long_share=share)


def test_no_sample_left(source, mix):
    with pytest.raises(UserError, match="no sample is left of 6: all have more than 5 tokens"):
        mix([source("a", 6)], max_length=5, max_too_long_share=1.0)


@pytest.fixture
def broken(source, tmp_path):
    """A source of 10 with an image that is missing, one that is no picture, and one that breaks off."""
    Image.effect_noise((64, 64), 90).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no picture")
    return source("a", 10, images={2: "missing.png", 5: "text.png", 7: "cut.png"})


def test_bad_samples_skipped(broken, mix):
    dataset, left_out = mix([broken, broken], decode=True, on_bad_sample="skip", max_bad_share=0.3)
    assert sorted(ids(dataset.samples)) == sorted(f"a{i}" for i in (0, 1, 3, 4, 6, 8, 9) for _ in range(2))
    reasons = {row["id"]: row["reason"] for row in left_out.rows()}
    assert "image 'missing.png' is not a file" in reasons["a2"]
    assert "text.png" in reasons["a5"] and "not a picture" in reasons["a5"]
    assert "cut.png" in reasons["a7"] and "truncated or corrupt" in reasons["a7"]
    assert left_out.counts() == {
        "image … is not a file under …": 1,
        "image … is not a picture of a format that is read …": 1,
        "image … is truncated or corrupt …": 1,
    }, "a source that is drawn from twice has each row once"


def test_share_of_bad_samples(broken, mix):
    message = r"3 of 10 samples are bad, at most a share of 0.2 is allowed; the first: .*a.json: row 2 \(id 'a2'\):"
    with pytest.raises(UserError, match=message):
        mix([broken], decode=True, on_bad_sample="skip", max_bad_share=0.2)


def test_a_bad_sample_is_an_error_by_default(source, tmp_path, mix):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match=r"1 of 3 samples are bad, .*row 1 \(id 'a1'\): image '.*text.png' is not"):
        mix([source("a", 3, images={1: "text.png"})], max_bad_share=0.5)


def test_picture_that_breaks_off_is_an_error_when_fetched(source, tmp_path):
    Image.effect_noise((64, 64), 90).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    samples, _ = load_samples(source("a", 2, images={1: "cut.png"}))
    dataset = indexed(samples, tiny_processor(), tmp_path)
    assert dataset[0]["pixel_values"].shape == (1, 3, 24, 24)
    with pytest.raises(UserError, match="sample 'a1': image '.*cut.png' is truncated or corrupt"):
        dataset[1]


def test_gigantic_picture(source, tmp_path, indexes):
    Image.new("RGB", (100, 100)).save(tmp_path / "large.png")
    (index,) = indexes([source("a", 2, images={1: "large.png"})], max_pixels=9999)
    ((row_id, reason),) = index.ids_and_reasons([1])
    assert row_id == "a1" and "large.png' is too large (100 x 100 pixels); at most 9999 pixels" in reason


def test_text_samples_need_no_picture(tmp_path):
    dataset = indexed([Sample("t", (), (("is", "no"),))] * 3, tiny_processor(), tmp_path)
    assert len(dataset) == 3 and dataset[0].keys() == {"input_ids", "labels"}
    assert len(set(dataset.digests)) == 1 and not dataset.has_picture.any()


def test_the_processor_is_checked_when_the_index_is_made(source, indexes):
    class OtherProcessor(LlavaProcessor):
        def __call__(self, text, **options):
            return super().__call__(text=text + " yes", **options)

    processor = tiny_processor()
    processor.__class__ = OtherProcessor
    with pytest.raises(UserError, match="OtherProcessor is not supported"):
        indexes([source("a", 2)], processor)


def test_a_picture_that_is_a_line_is_a_bad_sample(source, tmp_path, mix):
    Image.new("RGB", (500, 1)).save(tmp_path / "line.png")
    processor = QWEN2_VL.processor()
    lined = source("a", 2, images={1: "line.png"})
    with pytest.raises(UserError, match=r"\(id 'a1'\): .*line.png' is too long \(500 x 1 pixels\)"):
        mix([lined], processor, max_length=200)
    dataset, left_out = mix([lined], processor, max_length=200, on_bad_sample="skip", max_bad_share=0.5)
    assert ids(dataset.samples) == ["a0"] and [row["id"] for row in left_out.rows()] == ["a1"]
