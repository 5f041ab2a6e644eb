"""What a run reads besides its recipe: files, what lies on the Hub, and the embedded world.

A run folder records them when the run is begun. A later start compares what is there now. A record is

    of files                {name: {"size", "mtime_ns", "sha256"}} (training/inputs/fingerprints.py)
    of a name on the Hub    {"commit": what it stood for}, or {} where that is not known
    of the embedded world   {"first_rows": a hash of its first rows and pictures, as this version makes them}
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from huggingface_hub import HfApi, RepoFile, snapshot_download
from huggingface_hub.errors import HTTPError
from pydantic import BaseModel

from checkpoints.checks.folder import CONFIG, local_folder
from data.shapes.world import WorldSettings, digest_of_first_rows
from data.sources.tables import parts_of_hub
from modeling.user_error import UserError
from training.changes import Change, sections, settings
from training.inputs.fingerprints import OF_A_MODEL, files_at, fingerprints, folder_of, is_model, is_unchanged
from training.schema import MayChange

BEGUN = "when this run was begun"
COMMIT = "commit"


class Input(Protocol):
    """One thing that a run reads."""

    def record(self) -> dict:
        """Returns what it is now, as JSON holds it; an empty one where that is not known."""

    def difference(self, before: dict) -> str | None:
        """Returns in words how it differs from its record; None if it does not, or if that is not known."""


def inputs_of(recipe: BaseModel, known: dict) -> Iterator[tuple[str, Input]]:
    """Yields what a recipe names whose content must stay, each with the dotted name of its field.

    Args:
        known: the records of when the run was begun, by field; empty if it is begun now.
    """
    for field, setting in settings(recipe).items():
        if setting.may_change is not MayChange.WITH_EQUAL_CONTENT or setting.value is None:
            continue
        on_hub = _is_commit(known.get(field, {})) if known else not Path(setting.value).exists()
        if field.rpartition(".")[2] == "hub":
            yield field, _DataOnHub(setting.value)
        elif field.startswith("model.") and on_hub:
            yield field, _ModelOnHub(setting.value)
        else:
            yield field, _Files(Path(setting.value))
    for field, section in sections(recipe):
        if isinstance(section, WorldSettings):
            yield field, _World(section)


def may_change(change: Change, known: dict) -> bool:
    """Returns whether a field may have another value, as far as that can be said without a look at what it names.

    Args:
        known: the records of when the run was begun, by field.
    """
    if change.may_change is not MayChange.WITH_EQUAL_CONTENT:
        return change.may_change is not None
    before = known.get(change.field)
    if not before or change.now is None:
        return False
    return not _is_commit(before) or _without_revision(change.before) == _without_revision(change.now)


@dataclass(frozen=True)
class _Files:
    """A file, a model's folder, a folder of data, or a pattern of files."""

    path: Path

    def record(self) -> dict:
        return fingerprints(self.path)

    def difference(self, before: dict) -> str | None:
        files = files_at(self.path)
        added = [] if is_model(self.path) or not before else [name for name in files if name not in before]
        for name in (*before, *added):
            file = files.get(name)
            if file is None:
                return f"{folder_of(self.path) / name} is missing"
            if name in added:
                return f"{file} was not there {BEGUN}"
            if not is_unchanged(file, before[name]):
                return f"{file} has another content than {BEGUN}"
        return None


@dataclass(frozen=True)
class _ModelOnHub:
    """A model by its name on the Hub. The newest commit is read, so this finds which one that is."""

    name: str

    def record(self) -> dict:
        try:  # without a network, the cache tells the commit
            return {COMMIT: local_folder(self.name, [CONFIG]).name}
        except UserError:  # the first stage, which reads the model, says what is wrong
            return {}

    def difference(self, before: dict) -> str | None:
        now = self.record().get(COMMIT)
        if now is None or now == before.get(COMMIT, now):
            return None
        try:
            then, files = (_files_of(self.name, commit) for commit in (before[COMMIT], now))
        except (OSError, HTTPError):  # no network, or a commit that is gone
            return _other_commit(self.name, before[COMMIT], now)
        changed = sorted(name for name in {*then, *files} if then.get(name) != files.get(name))
        if not changed:
            return None
        return f"{', '.join(changed[:4])}: {_other_commit(self.name, before[COMMIT], now)}"


def _files_of(model: str, commit: str) -> dict[str, str]:
    """Returns of each file that decides what a model on the Hub is, at a commit, a hash of its content, by its path."""
    tree = HfApi().list_repo_tree(model, revision=commit)
    files = [entry for entry in tree if isinstance(entry, RepoFile)]
    return {file.path: file.blob_id for file in files if file.path.endswith(OF_A_MODEL)}


@dataclass(frozen=True)
class _DataOnHub:
    """A data set on the Hub, `owner/name[:config][@revision]`."""

    name: str

    def record(self) -> dict:
        parts = parts_of_hub(self.name)
        try:
            folder = snapshot_download(
                parts["repo"], repo_type="dataset", revision=parts["revision"], allow_patterns="README.md"
            )
        except (OSError, HTTPError):  # as above
            return {}
        return {COMMIT: Path(folder).name}

    def difference(self, before: dict) -> str | None:
        now = self.record()
        if not now or now[COMMIT] == before.get(COMMIT, now[COMMIT]):
            return None
        was = f"{_without_revision(self.name)}@{before[COMMIT]}"
        return f"{_other_commit(self.name, before[COMMIT], now[COMMIT])}; {was} names that one"


@dataclass(frozen=True)
class _World:
    """The embedded world. The code that makes it may have changed."""

    settings: WorldSettings

    def record(self) -> dict:
        return {"first_rows": digest_of_first_rows(self.settings)}

    def difference(self, before: dict) -> str | None:
        if not before or before == self.record():
            return None
        return f"this version of the project makes another world than the one {BEGUN}"


def _other_commit(name: str, before: str, now: str) -> str:
    return f"{name} is commit {now} on the Hub, and was {before} {BEGUN}"


def _is_commit(record: dict) -> bool:
    return isinstance(record.get(COMMIT), str)


def _without_revision(hub: str) -> str:
    return hub.partition("@")[0]
