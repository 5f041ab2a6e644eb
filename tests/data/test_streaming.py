"""Streams give what an encoded sample is, in an order that the seed decides, and stop at what is not allowed."""

from itertools import islice

import pytest
import torch
from PIL import Image

from data import streaming
from data.conversations import encode
from data.sources.reading import load_samples
from data.sources.source import Source
from data.streaming import StreamedDataset
from modeling.user_error import UserError
from tests.data.sources.layouts import rows_in, write_rows
from tests.tiny_processor import WORDS, tiny_processor

SETTINGS = {
    "max_length": 99,
    "seed": 0,
    "on_bad_sample": "error",
    "max_bad_share": 0.0,
    "max_too_long_share": 0.0,
    "part": (0, 1),
}
PICTURE_KEYS = {"pixel_values"}


def llava_rows(folder, words=WORDS[18:34]) -> list[dict]:
    """Rows that are told apart by their answer. Every second one has a picture of its own."""
    rows = []
    for number, word in enumerate(words):
        row = {"id": word, "conversations": [{"from": "human", "value": "what ?"}, {"from": "gpt", "value": word}]}
        if number % 2:
            Image.new("RGB", (24, 24), (10 * number, 0, 0)).save(folder / f"{number}.png")
            row["conversations"][0]["value"] = "<image>\nwhat ?"
            row["image"] = f"{number}.png"
        rows.append(row)
    return rows


@pytest.fixture
def shards(tmp_path):
    """Two files of rows, as one source."""
    rows = llava_rows(tmp_path)
    for number, part in enumerate((rows[:9], rows[9:])):
        (tmp_path / str(number)).mkdir()
        write_rows(part, tmp_path / str(number), "jsonl")
    return Source(path=tmp_path / "*" / "rows.jsonl", images=tmp_path, streaming=True)


def dataset(*sources, **settings) -> StreamedDataset:
    return StreamedDataset(sources, tiny_processor(), **SETTINGS | settings)


def answers(items) -> list[str]:
    """The answer of each item, which tells the items apart."""
    tokenizer = tiny_processor().tokenizer
    return [tokenizer.decode(item["labels"][item["labels"] >= 0][0]) for item in items]


def test_items_are_the_encoded_samples_and_each_comes_once_in_an_epoch(shards):
    samples, _ = load_samples(shards)
    expected = {sample.turns[0][1]: encode(sample, tiny_processor(), 99) for sample in samples}
    items = list(islice(dataset(shards), len(samples)))
    found = answers(items)
    assert sorted(found) == sorted(expected) and found != [sample.turns[0][1] for sample in samples]
    for answer, item in zip(found, items, strict=True):
        assert item.keys() == expected[answer].keys()
        for name, value in item.items():
            assert torch.equal(value, expected[answer][name])


def test_the_seed_and_the_epoch_decide_the_order(shards):
    def order(seed):
        return answers(islice(dataset(shards, seed=seed), 32))

    assert order(0) == order(0) != order(1)
    first, second = order(0)[:16], order(0)[16:]
    assert sorted(first) == sorted(second) and first != second


def test_parts_are_dealt_out_in_turn(shards):
    whole = answers(islice(dataset(shards), 12))
    parts = [answers(islice(dataset(shards, part=(number, 3)), 4)) for number in range(3)]
    assert [answer for dealt in zip(*parts, strict=True) for answer in dealt] == whole


@pytest.mark.parametrize("form", ["parquet", "arrow", "tar"])
def test_embedded_pictures_are_streamed(tmp_path, form):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    path = write_rows(rows_in("llava"), tmp_path, form, (tmp_path / "a.png").read_bytes())
    samples, _ = load_samples(Source(path=path))
    items = list(islice(dataset(Source(path=path, streaming=True)), 3))
    encoded = [encode(sample, tiny_processor(), 99) for sample in samples]
    for item in items:
        assert any(
            item.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in item.items())
            for other in encoded
        )
    assert sum(bool(item.keys() & PICTURE_KEYS) for item in items) == 2


def test_sources_are_mixed_by_weight(tmp_path, shards):
    (tmp_path / "b").mkdir()
    rows = [row | {"id": "b"} for row in llava_rows(tmp_path / "b", ["describe"] * 4)]
    other = Source(path=write_rows(rows, tmp_path / "b", "json"), images=tmp_path / "b", streaming=True, weight=3)
    found = answers(islice(dataset(shards, other), 16))
    assert found.count("describe") == 12


def test_bad_rows_and_long_ones(tmp_path):
    rows = llava_rows(tmp_path)
    rows[3]["image"] = "missing.png"
    path = write_rows(rows, tmp_path, "jsonl")
    source = Source(path=path, images=tmp_path, streaming=True)
    with pytest.raises(UserError, match=r"rows.jsonl: row \d+ .*missing.png"):
        list(islice(dataset(source), 16))
    found = answers(islice(dataset(source, on_bad_sample="skip", max_bad_share=0.5), 15))
    assert len(set(found)) == 15 and rows[3]["id"] not in found
    with pytest.raises(UserError, match="1 of .* samples are bad, at most a share of 0.0 is allowed"):
        list(islice(dataset(source, on_bad_sample="skip"), 16))
    with pytest.raises(UserError, match="samples are too long, at most a share of 0.0 is allowed"):
        list(islice(dataset(source, on_bad_sample="skip", max_bad_share=0.5, max_length=12), 16))
    short = islice(dataset(source, on_bad_sample="skip", max_bad_share=0.5, max_too_long_share=0.5, max_length=12), 8)
    assert not any(item.keys() & PICTURE_KEYS for item in short)


def test_what_cannot_be_opened_is_one_line(tmp_path):
    (tmp_path / "odd.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    for name, message in (
        ("odd.jsonl", "odd.jsonl: columns: got answer, question, which fit none"),
        ("empty.jsonl", "no rows"),
        ("none.jsonl", "there is no such file"),
        ("cut.parquet", "cannot be read"),
    ):
        with pytest.raises(UserError, match=message) as raised:
            dataset(Source(path=tmp_path / name, streaming=True))
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="a folder is not streamed"):
        dataset(Source(path=tmp_path, streaming=True))


def test_a_filler_has_a_picture(shards, tmp_path):
    (filler,) = dataset(shards).first_of_each_medium()
    assert filler.keys() & PICTURE_KEYS
    text = write_rows([row for row in llava_rows(tmp_path) if "image" not in row], tmp_path, "json")
    endless = dataset(Source(path=text, streaming=True))
    assert endless.first_of_each_medium() == []


def test_a_stream_without_any_sample_ends(tmp_path, monkeypatch):
    """With all rows bad, or left out by a filter, and all that allowed, it went round for ever."""
    monkeypatch.setattr(streaming, "COUNTED_FROM", 20)
    rows = [row | {"conversations": row["conversations"][:1]} for row in llava_rows(tmp_path)]
    path = write_rows(rows, tmp_path, "jsonl")
    allowed = {"on_bad_sample": "skip", "max_bad_share": 1.0, "max_too_long_share": 1.0}
    bad = Source(path=path, images=tmp_path, streaming=True)
    filtered = Source(path=path, images=tmp_path, streaming=True, where={"id": "none"})
    for source, part, message in (
        (bad, (0, 1), "no sample among 20 rows, .*; the last: .*rows.jsonl: row .*ends with a question"),
        (bad, (3, 8), "no sample among 20 rows, .*; the last: .*rows.jsonl: row .*ends with a question"),
        (filtered, (0, 1), "no sample among 20 rows, .*the sources' filters leave all out"),
    ):
        stream = dataset(source, part=part, **allowed)
        with pytest.raises(UserError, match=message) as refused:
            next(iter(stream))
        assert "\n" not in str(refused.value)
        assert stream.first_of_each_medium() == []
    good = Source(path=write_rows(llava_rows(tmp_path), tmp_path, "json"), images=tmp_path, streaming=True)
    assert len(list(islice(dataset(good, part=(7, 8), **allowed), 40))) == 40
    with pytest.raises(UserError, match="no sample among 20 rows, .* tokens, at most 2 are allowed"):
        next(iter(dataset(good, **allowed | {"max_length": 2})))
