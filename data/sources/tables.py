"""Typed tables: parquet and arrow files, folders, and data sets on the Hub. `datasets` reads them."""

import os
import re
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import snapshot_download

from data.sources.library import in_one_line
from modeling.user_error import UserError

TABLES = {".parquet": "parquet", ".arrow": "arrow"}
"""Endings of typed files, and what `datasets` calls their format."""
DEFAULT_SPLIT = "train"
_HUB = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?::(?P<config>.+?))?(?:@(?P<revision>[^@]+))?")
_SAVED = ("dataset_info.json", "dataset_dict.json")
"""What one of stands in a folder that `save_to_disk` wrote."""


def table_of_files(paths: Sequence[Path], name: str) -> datasets.Dataset:
    """Returns the rows of typed files of one format, pictures not decoded. Raises UserError if one cannot be read."""
    files = [str(path) for path in paths]
    with in_one_line(name):
        return undecoded(datasets.load_dataset(TABLES[paths[0].suffix], data_files=files, split=DEFAULT_SPLIT))


def table_of_folder(path: Path, split: str | None) -> datasets.Dataset:
    """Returns the rows of a folder, pictures not decoded.

    Args:
        path: a folder that `save_to_disk` wrote, or one that is laid out as a data set on the Hub.
        split: the split; None for `train`, and for the rows of a folder without splits.

    Raises:
        UserError: it cannot be read, or has no such split.
    """
    with in_one_line(str(path)):
        if any((path / file).is_file() for file in _SAVED):
            found = _load_saved(path)
        else:
            found = datasets.load_dataset(str(path))
    return _split(found, split, str(path))


def table_of_hub(hub: str, split: str | None) -> datasets.Dataset:
    """Returns the rows of a data set on the Hub, from the cache where there is no network. Pictures are not decoded.

    Raises:
        UserError: the id is none, or no data set, config or split is called so, or it cannot be read.
    """
    parts = _HUB.fullmatch(hub)
    if parts is None:
        raise UserError(f"hub: got {hub!r}, allowed: owner/name[:config][@revision]")
    if os.path.exists(parts["repo"]):  # `datasets` would take it for the data set
        raise UserError(f"hub: {parts['repo']!r} is a file or a folder here; give it as `path`, or start elsewhere")
    with in_one_line(hub):
        commit = None if parts["revision"] is None else _commit(parts["repo"], parts["revision"])
        found = datasets.load_dataset(parts["repo"], parts["config"], revision=commit)
    table = _split(found, split, hub)
    if commit is not None and not all(commit in file["filename"] for file in table.cache_files):
        # Without a network, `datasets` gives what it has in its cache, whatever the revision.
        raise UserError(f"{hub}: the cache holds another revision, and the Hub cannot be asked")
    return table


def undecoded(table: datasets.Dataset) -> datasets.Dataset:
    """Returns a table whose pictures, sounds and videos are given as they are stored, {bytes, path}.

    Nothing is copied, as it would be by `Dataset.cast`: the types of the stored values stay the same.
    """
    info = table.info.copy()
    info.features = datasets.Features({name: _undecoded(feature) for name, feature in table.features.items()})
    return datasets.Dataset(
        table.data, info=info, split=table.split, indices_table=table._indices, fingerprint=table._fingerprint
    )


def _undecoded(feature: Any) -> Any:
    if isinstance(feature, dict):
        return {name: _undecoded(value) for name, value in feature.items()}
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return replace(feature, feature=_undecoded(feature.feature))
    stored = copy(feature)
    if getattr(feature, "decode", False) and type(feature).__name__ != "Json":
        stored.decode = False
    return stored


def _load_saved(path: Path) -> datasets.Dataset | datasets.DatasetDict:
    """Returns what `save_to_disk` wrote."""
    try:
        return datasets.load_from_disk(str(path))
    except (LookupError, TypeError) as error:  # a file is missing, or holds something else
        raise UserError(f"{path}: has no rows, or not all that save_to_disk writes ({error!r})") from error


def _commit(repository: str, revision: str) -> str:
    """Returns the commit that a branch, a tag or a commit stands for. Without a network, the cache tells it."""
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    folder = snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns="README.md")
    return Path(folder).name


def _split(found: datasets.Dataset | datasets.DatasetDict, split: str | None, name: str) -> datasets.Dataset:
    """Returns a split of what was loaded, which may have none."""
    if isinstance(found, datasets.Dataset):
        if split not in (None, DEFAULT_SPLIT):
            raise UserError(f"{name}: split: got {split!r}, it has no splits")
        return undecoded(found)
    split = split or DEFAULT_SPLIT
    if split not in found:
        raise UserError(f"{name}: split: got {split!r}, allowed: {', '.join(map(str, found))}")
    table = found[split]
    if table.info.builder_name == "webdataset":
        # It takes the types of all rows from the first five, and drops what later rows have beside.
        raise UserError(f"{name}: holds webdataset shards; download them and give them as `path`")
    return undecoded(table)
