"""An index holds what encoding row by row gives, is made once, and marks what cannot be used."""

import hashlib
import json
import os
import sys
from pathlib import Path

import datasets
import dill
import numpy as np
import pytest
import torch
from PIL import Image

from data.conversations import encode
from data.dataset import ConversationDataset
from data.index import build
from data.index.build import build_indexes
from data.index.index import Index, open_indexes
from data.mixture import build_mixture
from data.sample import EmbeddedFile, Sample
from data.sources.source import Source
from modeling.user_error import UserError
from tests.families.test_families import FAMILIES
from tests.indexed import indexed, written
from tests.tiny_processor import tiny_processor


@pytest.fixture
def samples(tmp_path) -> list[Sample]:
    """No picture, one, and several, of several sizes, some of them shared; one turn and several; a system message."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, size in {"a": (30, 24), "b": (24, 60), "c": (70, 33)}.items():
        Image.effect_noise(size, 50).convert("RGB").save(pictures / f"{name}.png")
    a, b, c = (pictures / f"{name}.png" for name in "abc")
    return [
        Sample("one", (a,), (("<image>\nis it red?", "yes"),)),
        Sample("two", (b, a), (("<image> <image> red?", "no , yes"), ("is it?", "yes")), "colour"),
        Sample("text", (), (("is it?", "no"), ("red?", "yes"), ("is it blue?", "no"))),
        Sample("later", (c,), (("is it?", "no"), ("<image> red?", "yes"))),
        Sample("two", (b, a), (("<image> <image> red?", "no , yes"), ("is it?", "yes")), "colour"),
    ]


def assert_items_are_encoded(dataset: ConversationDataset, samples: list[Sample], processor) -> None:
    """The slow reference is `encode`."""
    assert len(dataset) == len(samples)
    for index, sample in enumerate(samples):
        expected, item, tokens = encode(sample, processor, 10**6), dataset[index], dataset.tokens(index)
        assert item.keys() == expected.keys()
        assert all(torch.equal(item[name], expected[name]) for name in expected)
        assert tokens.keys() == {"input_ids", "labels"} and all(
            torch.equal(tokens[name], item[name]) for name in tokens
        )
        assert dataset.lengths[index] == len(expected["input_ids"])
        assert dataset.supervised[index] == (expected["labels"] != -100).sum()
        assert dataset.has_picture[index] == bool(sample.images)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_items_are_the_encoded_samples(family, samples, tmp_path):
    processor = family.processor()
    dataset = indexed(samples, processor, tmp_path)
    assert list(dataset.samples) == samples
    assert_items_are_encoded(dataset, samples, processor)
    assert_items_are_encoded(dataset.subset([3, 0, 3]), [samples[3], samples[0], samples[3]], processor)
    assert_items_are_encoded(dill.loads(dill.dumps(dataset)), samples, processor)
    with pytest.raises(AssertionError):  # the negative control
        assert_items_are_encoded(dataset, samples[::-1], processor)


def test_equal_samples_have_equal_digests(samples, tmp_path):
    digests = indexed(samples, tiny_processor(), tmp_path).digests
    assert digests[1] == digests[4] and len(set(digests)) == len(set(samples)) == 4


@pytest.mark.parametrize("family", FAMILIES[-2:], ids=lambda family: family.name)
def test_several_processes_make_the_same_index(family, samples, tmp_path, monkeypatch):
    source, processor = written(samples * 4, tmp_path / "samples.json"), family.processor()
    (alone,) = build_indexes([source], processor, tmp_path / "alone", decode=True)
    monkeypatch.setattr(build, "_ROWS_PER_PROCESS", 5)
    monkeypatch.setattr(build, "_FILES_PER_PROCESS", {"image": 1, "video": 1})
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    (together,) = build_indexes([source], processor, tmp_path / "together", decode=True)
    assert alone.name == together.name
    one, several = (datasets.Dataset.from_file(str(path)) for path in (alone, together))
    assert one[:] == several[:] and len(one) == 20


def test_embedded_pictures_are_those_in_files(samples, tmp_path):
    """They are read from the source when a sample is asked for, and have the digest of their content."""

    def picture(path):
        return {"bytes": path.read_bytes(), "path": path.name}

    rows = [
        {
            "id": sample.id,
            "family": sample.family,
            "images": [picture(path) for path in sample.images],
            "messages": [
                {"role": role, "content": text}
                for turn in sample.turns
                for role, text in zip(("user", "assistant"), turn, strict=True)
            ],
        }
        for sample in samples
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    source = Source(path=tmp_path / "rows.parquet")
    processor = tiny_processor()
    (path,) = build_indexes([source], processor, tmp_path / "embedded", decode=True)
    numbers = np.arange(len(samples))
    dataset = ConversationDataset([Index(path, source)], np.zeros_like(numbers), numbers, processor)
    assert_items_are_encoded(dataset, samples, processor)
    assert all(isinstance(picture, EmbeddedFile) for sample in dataset.samples for picture in sample.images)
    assert dataset.digests[1] == dataset.digests[4] and len(set(dataset.digests)) == 4
    assert path.stat().st_size < 50_000 + sum(picture.stat().st_size for picture in (tmp_path / "pictures").iterdir())


def test_rows_that_cannot_be_used_are_marked(tmp_path):
    def row(question, answer, source="a", **rest):
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        return {"source": source, "conversations": turns, **rest}

    rows = [
        row("is it", "no", id="good"),
        row("is it", "no", id="filtered", source="b"),
        row("is it", " ", id="empty"),
        row("<pic>", "no", id="token"),
        row("<image>", "no", image="text.png"),
        row("is it", "yes", id="last"),
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "text.png").write_text("no picture")
    source = Source(path=tmp_path / "rows.json", images=tmp_path, where={"source": "a"})
    processor = tiny_processor()
    processor.video_token = "<pic>"
    index = Index(build_indexes([source], processor, tmp_path / "data", decode=False)[0], source)
    assert np.flatnonzero(index.is_good).tolist() == [0, 5]
    assert np.flatnonzero(index.is_filtered).tolist() == [1]
    assert np.flatnonzero(index.is_bad).tolist() == [2, 3, 4]
    (_, empty), (_, token), (row_id, picture) = index.ids_and_reasons([2, 3, 4])
    assert empty == "turn 1 is an empty answer"
    assert token == "a text holds '<pic>', which stands for what the model is shown; no text may hold it"
    assert row_id == "row 4" and "text.png' is not a picture of a format" in picture
    assert index.sample(5).id == "last"


def test_a_second_start_reads_the_index(samples, tmp_path, monkeypatch):
    source = written(samples, tmp_path / "samples.json")
    options = {"folder": tmp_path / "data", "decode": False}
    paths = build_indexes([source, source], tiny_processor(), **options)
    assert paths[0] == paths[1] and list((tmp_path / "data").iterdir()) == [paths[0]]
    more = Source(path=source.path, images=source.images, weight=2)
    monkeypatch.setattr(build, "_write_indexes", lambda *args: pytest.fail("it was made again"))
    assert build_indexes([more], tiny_processor(), **options) == paths[:1], "how much is used does not matter"


def test_what_decides_an_index_makes_another(samples, tmp_path):
    source = written(samples, tmp_path / "samples.json")
    (tmp_path / "moved").mkdir()
    words = tiny_processor(vocab_words=("is", "it", "yes"))
    template = tiny_processor(chat_template=tiny_processor().chat_template.replace("ASSISTANT", "BOT"))
    sizes = tiny_processor(image_size=48)
    for folder, processor, decode in (("a", words, False), ("b", template, False), ("c", sizes, False)):
        build_indexes([source], processor, tmp_path / folder, decode=decode)
    names = {path.name for folder in "abc" for path in (tmp_path / folder).iterdir()}
    names |= {path.name for path in build_indexes([source], tiny_processor(), tmp_path / "data", decode=False)}
    names |= {path.name for path in build_indexes([source], tiny_processor(), tmp_path / "data", decode=True)}
    (changed,) = (written(samples[:2], tmp_path / "samples.json"),)
    names |= {path.name for path in build_indexes([changed], tiny_processor(), tmp_path / "data", decode=True)}
    assert len(names) == 6


def test_pictures_may_move(samples, tmp_path):
    pictures, moved = tmp_path / "pictures", tmp_path / "moved"
    relative = [Sample(one.id, tuple(Path(path.name) for path in one.images), one.turns, one.family) for one in samples]
    source = written(relative, tmp_path / "samples.json", images=pictures)
    (path,) = build_indexes([source], tiny_processor(), tmp_path / "data", decode=False)
    pictures.rename(moved)
    index = Index(path, source.model_copy(update={"images": moved}))
    assert index.sample(1).images == (moved / "b.png", moved / "a.png")


def test_an_index_says_what_its_pictures_were(samples, tmp_path):
    """Of each once, in the order of `files`. Embedded pictures and those of bad rows have nothing to be compared."""
    (path,) = build_indexes(
        [source := written(samples, tmp_path / "rows.json")], tiny_processor(), tmp_path / "data", decode=True
    )
    index = Index(path, source)
    for rows in ([0, 1, 2, 3, 4], [3], [3, 1, 0], [2], []):
        files = list(index.files(np.array(rows, dtype=int)))
        named = {file for row in rows for file in samples[row].images}
        assert len(files) == len(named) and set(files) == named
        read = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
        assert index.contents(np.array(rows, dtype=int)).to_pylist() == [
            {
                "bytes": len(data),
                "mtime_ns": time,
                "ends": hashlib.blake2b(data[:4096] + data[-4096:], digest_size=16).digest(),
            }
            for data, time in read
        ]


def test_a_start_that_was_killed_leaves_nothing_half_written(samples, tmp_path, monkeypatch):
    source = written(samples, tmp_path / "samples.json")

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "joined", killed)
        with pytest.raises(KeyboardInterrupt):
            build_indexes([source], tiny_processor(), tmp_path / "data", decode=False)
    assert not list((tmp_path / "data").glob("*.arrow"))
    (path,) = build_indexes([source], tiny_processor(), tmp_path / "data", decode=False)
    assert list((tmp_path / "data").iterdir()) == [path]


OPENED: list[tuple[str, int]] = []
"""The folder whose files are watched, and the file descriptor of the log. At most one at a time."""


def heard(event: str, arguments: tuple) -> None:
    """An audit hook, which cannot be taken away. Processes that are forked have it too, and write to the same log."""
    for folder, log in OPENED:
        if event == "open" and str(arguments[0]).startswith(folder):
            os.write(log, f"{arguments[0]}\n".encode())


@pytest.fixture
def opened(samples, tmp_path):
    """opened() gives the names of the pictures that were opened until now, each as often as it was."""
    if heard not in HOOKS:
        sys.addaudithook(heard)
        HOOKS.append(heard)
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    OPENED.append((f"{tmp_path / 'pictures'}/", log))
    yield lambda: sorted(Path(line).name for line in (tmp_path / "log").read_text().splitlines())
    OPENED.clear()
    os.close(log)


HOOKS: list = []


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("decode", [True, False])
def test_each_picture_is_opened_once(samples, opened, tmp_path, monkeypatch, decode, processes):
    """Whatever number of rows, sources, roles, stages and processes."""
    monkeypatch.setattr(build, "_ROWS_PER_PROCESS", 2)
    monkeypatch.setattr(build, "_FILES_PER_PROCESS", {"image": 1, "video": 1})
    monkeypatch.setattr("os.cpu_count", lambda: processes)
    train, test = written(samples, tmp_path / "train.json"), written(samples[::-1], tmp_path / "test.json")
    sources, processor = [train, test, train], tiny_processor()
    for _ in range(2):  # two starts, each with several stages
        paths = build_indexes(sources, processor, tmp_path / "data", decode=decode)
        for _ in range(2):
            dataset, _ = build_mixture(open_indexes(sources, paths), processor, max_length=99, seed=0)
            assert len(dataset) == 15 and dataset.tokens(0) and dataset.sizes("image")
        assert opened() == ["a.png", "b.png", "c.png"]
    assert dataset[int(np.flatnonzero(dataset.has_picture)[0])] and len(opened()) > 3, "the negative control"


def test_a_source_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nowhere.json"):
        build_indexes([Source(path=tmp_path / "nowhere.json")], tiny_processor(), tmp_path / "data", decode=False)
    assert not (tmp_path / "data").exists()


def test_rows_lie_together_however_they_were_read(samples, tmp_path, monkeypatch):
    """A process that opens an index holds something for each of its chunks, and nothing for each row."""
    monkeypatch.setattr(build, "_ROWS_AT_ONCE", 2)
    for most, chunks in ((20, 1), (3, 4)):
        monkeypatch.setattr(build, "_ROWS_OF_A_CHUNK", most)
        (folder := tmp_path / str(most)).mkdir()
        dataset = indexed(samples * 2, tiny_processor(), folder)
        (index,) = dataset._indexes
        assert [column.num_chunks for column in index._table.data.table.columns] == [chunks] * len(
            index._table.features
        )
        assert list(dataset.samples) == samples * 2
        arrays = [value for held in (index, dataset) for value in vars(held).values() if isinstance(value, np.ndarray)]
        assert sum(array.nbytes for array in arrays) == 8 * len(dataset), "which index, and which of its rows"


@pytest.mark.parametrize("size, expected", [(10, 128), (2**20, 63), (80 * 2**20, 1)])
def test_large_rows_are_read_a_few_at_a_time(size, expected):
    assert build._rows_at_once(datasets.Dataset.from_dict({"video": [bytes(size)]})) == expected
