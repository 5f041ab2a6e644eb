"""Where a benchmark's files lie, and how they are read: LLaVA's `playground/data/eval`, or a data set on the Hub."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from data.sample import EmbeddedFile
from data.sources.files import find_file
from data.sources.tables import table_of_files, table_of_folder, table_of_hub
from data.texts.json_text import parse_json
from modeling.user_error import UserError

MAX_FILE = 2 * 2**30
"""Largest file of questions in bytes. It is held in memory while it is read."""


@dataclass(frozen=True)
class StoredPicture:
    """A picture that stands in a row of a table. It is read when it is asked for.

    Attributes:
        table: the table, pictures not decoded.
        row: the number of the row.
        column: the column. It holds one picture {bytes, path}, or a list of them.
        number: which of a list.
    """

    table: datasets.Dataset
    row: int
    column: str
    number: int = 0

    def __str__(self) -> str:
        return f"{self.column} of row {self.row}"

    def read(self) -> EmbeddedFile:
        """Returns the picture as a file's bytes. Raises UserError where there is none."""
        value = self.table.select_columns(self.column)[self.row][self.column]
        if isinstance(value, list):
            value = value[self.number] if self.number < len(value) else None
        if not isinstance(value, dict) or not value.get("bytes"):
            raise UserError(f"{self}: no picture")
        return EmbeddedFile(value["bytes"], str(self))


@dataclass(frozen=True)
class Place:
    """Where one benchmark lies: in a folder, or on the Hub.

    Attributes:
        path: its folder, in LLaVA's layout or in the Hub's.
        hub: the data set, `owner/name[@revision]`. One of the two is None.
    """

    path: Path | None = None
    hub: str | None = None

    def __str__(self) -> str:
        return str(self.path or self.hub)

    def file(self, *names: str) -> Path | None:
        """Returns the first of these files that is there; None if none is. Names start from the folder."""
        if self.path is None:
            return None
        return next((self.path / name for name in names if (self.path / name).is_file()), None)

    def needed_file(self, *names: str) -> Path:
        """Returns the first of these files that is there. Raises UserError if none is."""
        found = self.file(*names)
        if found is None:
            raise UserError(f"{self}: has no {' and no '.join(names)}")
        return found

    def image(self, name: Any, *folders: str) -> Path:
        """Returns a picture's file, which lies in one of these folders of the place.

        Raises:
            UserError: it is in none of them.
        """
        assert self.path is not None
        if not isinstance(name, str):
            raise UserError(f"{self}: got {name!r} as a picture's name, a text is expected")
        errors = []
        for folder in folders:
            try:
                return find_file(self.path / folder, name, "image")
            except UserError as error:
                errors.append(str(error))
        raise UserError("; ".join(errors))

    def table(self, columns: Sequence[str], *, split: str, config: str | None = None) -> datasets.Dataset:
        """Returns a split of a data set in the Hub's layout, pictures not decoded.

        Args:
            columns: those that are read.
            config: its configuration, such as a language. None where it has one only.

        Raises:
            UserError: it cannot be read, or lacks the split, a file of it, or a column.
        """
        if self.hub is not None:
            repository, at, revision = self.hub.partition("@")
            table = table_of_hub(f"{repository}{f':{config}' if config else ''}{at}{revision}", split)
        else:
            assert self.path is not None
            folder = self.path / config if config and (self.path / config).is_dir() else self.path
            files = _files_of_split(folder, split)
            table = table_of_files(files, f"{folder}, split {split}") if files else table_of_folder(folder, split)
        for column in columns:
            if column not in table.column_names:
                raise UserError(f"{self}: no column is called {column!r}; they are {', '.join(table.column_names)}")
        return table


def read_json(path: Path) -> Any:
    """Returns what a JSON file holds. Raises UserError where it is too large or no JSON."""
    text = read_text(path)
    try:
        return parse_json(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_json_lines(path: Path, fields: Sequence[str]) -> list[dict]:
    """Returns the objects of a file with one in each line.

    Args:
        fields: those that each must have.

    Raises:
        UserError: it is too large, a line is no JSON object, or a field is missing.
    """
    return [checked(row, fields, f"{path}, line {number}") for number, row in _json_lines(path)]


def checked(row: Any, fields: Sequence[str], where: str) -> dict:
    """Returns a row that must be an object with these fields. Raises UserError where it is not."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: got {type(row).__name__}, an object is expected")
    for name in fields:
        if name not in row:
            raise UserError(f"{where}: no field is called {name!r}; they are {', '.join(map(str, row))}")
    return row


def read_text(path: Path) -> str:
    """Returns a file's text. Raises UserError where it is too large or no UTF-8."""
    try:
        if path.stat().st_size > MAX_FILE:
            raise UserError(f"{path}: has more than {MAX_FILE} bytes")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}") from error


def _files_of_split(folder: Path, split: str) -> list[Path]:
    """Returns the files of a split that are named as the Hub names them.

    `datasets` guesses the splits of a folder by their names, and knows no `testdev`.

    Raises:
        UserError: the names say that there are more.
    """
    files = sorted(file for room in (folder, folder / "data") for file in room.glob(f"{split}-*-of-*.parquet"))
    for file in files:
        said = file.stem.split("-of-")[1].split("-")[0]
        if said.isdecimal() and int(said) != len(files):
            raise UserError(
                f"{folder}: split {split} has {len(files)} of the {int(said)} files that {file.name} tells of"
            )
    return files
