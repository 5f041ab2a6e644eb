"""Data sets on the Hub: configs, splits and revisions, with a Hub on this machine, and with the cache alone."""

import io
from contextlib import ExitStack

import datasets
import pytest
from huggingface_hub import constants

from data.sources.reading import load_samples, open_source
from data.sources.source import Source
from modeling.user_error import UserError
from tests.data.sources.fake_hub import COMMIT, fake_hub
from tests.data.sources.layouts import write_tar

CARD = b"""---
configs:
- config_name: sharegpt4v(coco)
  data_files:
  - {split: train, path: a/*.parquet}
  - {split: test, path: b/*.parquet}
- config_name: broken
  data_files: c/*.parquet
---
"""
SET = "me/set:sharegpt4v(coco)"


def parquet(name: str) -> bytes:
    file = io.BytesIO()
    row = {"id": name, "prompt": "a", "completion": "b", "image": {"bytes": b"x", "path": "x.png"}}
    datasets.Dataset.from_list([row]).cast_column("image", datasets.Image()).to_parquet(file)
    return file.getvalue()


FILES = {
    "README.md": CARD,
    "a/0.parquet": parquet("one"),
    "b/0.parquet": parquet("two"),
    "c/0.parquet": parquet("one")[:-50],
}


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """serve(files) starts a Hub with the data set me/set. Its caches are empty."""
    with ExitStack() as stack:

        def serve(files):
            address = stack.enter_context(fake_hub("me/set", files))
            monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)
            monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
            monkeypatch.setattr(constants, "ENDPOINT", address)
            url = address + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
            monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
            monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

        yield serve


@pytest.fixture
def no_network(monkeypatch):
    """Called, it leaves the caches alone."""

    def call():
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    return call


def ids(hub, split=None):
    samples, _ = load_samples(Source(hub=hub, split=split))
    assert [picture.data for sample in samples for picture in sample.images] == [b"x"]
    return [sample.id for sample in samples]


def refused(hub, split=None) -> str:
    with pytest.raises(UserError) as error:
        open_source(Source(hub=hub, split=split))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_configs_splits_and_revisions(serve, no_network):
    serve(FILES)
    assert ids(SET) == ["one"] and ids(SET, "train") == ["one"] and ids(SET, "test") == ["two"]
    assert ids(f"{SET}@main", "test") == ["two"] and ids(f"{SET}@{COMMIT}", "test") == ["two"]
    rows = open_source(Source(hub=SET, split="test"))
    assert (rows.name, rows.schema.name) == (f"{SET}, split test", "prompt")
    no_network()
    assert ids(SET) == ["one"] and ids(SET, "test") == ["two"]
    assert ids(f"{SET}@main", "test") == ["two"] and ids(f"{SET}@{COMMIT}") == ["one"]
    assert open_source(Source(hub=SET, split="test")).fingerprint == rows.fingerprint
    assert f"@{'a' * 40}: the cache holds another revision" in refused(f"{SET}@{'a' * 40}")
    assert "@v7: cannot be read (Cannot find an appropriate cached snapshot folder" in refused(f"{SET}@v7")
    assert "Available configs in the cache: ['sharegpt4v(coco)']" in refused("me/set:nothing")
    assert "me/other: cannot be read (Couldn't reach 'me/other' on the Hub" in refused("me/other")


def test_what_is_not_there_is_named(serve):
    serve(FILES)
    configs = "['sharegpt4v(coco)', 'broken']"
    assert f"me/set:nothing: cannot be read (BuilderConfig 'nothing' not found. Available: {configs})" == refused(
        "me/set:nothing"
    )
    assert refused("me/set").endswith(f"Please pick one among the available configs: {configs})")
    assert refused(SET, "exam") == f"{SET}: split: got 'exam', allowed: train, test"
    assert "404" in refused(f"{SET}@v7") and "@v7" in refused(f"{SET}@v7")
    assert "me/other: cannot be read (Dataset 'me/other' doesn't exist on the Hub" in refused("me/other")
    assert "me/set:broken: cannot be read (Parquet magic bytes not found in footer" in refused("me/set:broken")


def test_shards_are_refused(serve, tmp_path):
    write_tar(tmp_path / "0.tar", [("0.json", b'{"prompt": "a", "completion": "b"}')])
    serve({"0.tar": (tmp_path / "0.tar").read_bytes()})
    assert refused("me/set") == "me/set: holds webdataset shards; download them and give them as `path`"


def test_ids_that_are_none(tmp_path, monkeypatch):
    for wrong in ("parquet", "a/b/c", "/etc/passwd", "../a", "a/b:", "a/b@", ""):
        assert refused(wrong) == f"hub: got {wrong!r}, allowed: owner/name[:config][@revision]"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "set").mkdir(parents=True)
    assert "hub: 'me/set' is a file or a folder here; give it as `path`" in refused("me/set:x")
