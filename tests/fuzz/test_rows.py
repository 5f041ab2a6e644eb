"""Rows of every schema that are broken on purpose: each is a sample that encodes, or refused in a line.

A row is read and encoded by itself, and with the others in one index. Both must say the same of it.
"""

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from data.conversations import encode
from data.index.build import build_indexes
from data.index.index import Index
from data.sample import SampleTooLong
from data.sources.row_table import ROW, parse_row
from data.sources.rows import SourceRows
from data.sources.schemas import SCHEMAS
from data.sources.source import Source
from tests.data.sources.layouts import LAYOUTS, SCHEMA_OF, rows_in
from tests.fuzz.guards import alarm, nothing_done, refused
from tests.tiny_processor import tiny_processor

CASES, SAMPLE = 1_500, 40
LONGEST = 4_000
DEEP = json.loads("[" * 200 + "]" * 200)
VALUES = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, 0.5, float("nan"), float("inf"), "", " ", "a", "x" * 100_000,
    "\ud83d", "\udc80", "\0", "a\0b", "é中", "\u202e", "a.png", "b.png", "../secret.png", "/etc/passwd", "a.png\n",
    "x" * 300, "<image>", "<video>", "<audio>", "<image>" * 3, "<s>", "</s>", "<image>\ud83d", "USER: ", "ASSISTANT:",
    "{{ 7 * 7 }}", [], {}, [[]], [{}], [None], ["a.png"], ["a.png", "a.png"], {"a": 1}, {"bytes": "x", "path": None},
    {"path": "a.png"}, {"bytes": None, "path": None}, {"type": "image"}, {"type": "text"}, {"type": ["text"]}, DEEP,
)  # fmt: skip
"""What a value is replaced by."""
NAMES = (
    "id", "family", "system", "image", "images", "video", "videos", "audio", "tools", "rejected", "conversations",
    "messages", "texts", "prompt", "completion", "role", "content", "from", "value", "user", "assistant", "type",
    "text", "path", "tool_calls", "\ud83d", "",
)  # fmt: skip
"""What a key is called then."""
TEXTS = ('{"id": 1, "id": 2, ', '{"conversations": [], ', '{"messages": null, ', '{"": {"": 1, "": 2}, ')
"""Beginnings of objects with a key that stands twice, or will."""


class Case(NamedTuple):
    schema: str
    text: str
    """The row as it stands in a file of JSON lines."""
    is_twice: bool
    """Whether a key stands twice in it."""

    def __repr__(self) -> str:
        return f"{self.schema}: {self.text[:250]!r}"


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths to everything inside a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [found for key, child in items for found in places(child, (*path, key))]


def mutated(row: dict, rng: random.Random) -> dict:
    """A row in which something is replaced, left out, renamed, doubled or moved."""
    row = json.loads(json.dumps(row))
    *above, last = rng.choice(places(row))
    parent: Any = row
    for key in above:
        parent = parent[key]
    match rng.choice(("replace", "replace", "replace", "delete", "rename", "add", "double", "swap", "many", "name")):
        case "name":
            row[rng.choice(("id", "family", "system"))] = rng.choice(
                ("\ud83d", "a\udc80", "x" * 10_000, 2**63, ["\ud83d"])
            )
        case "replace":
            parent[last] = rng.choice(VALUES)
        case "delete":
            del parent[last]
        case "rename" if isinstance(parent, dict):
            parent[rng.choice(NAMES)] = parent.pop(last)
        case "add" if isinstance(parent, dict):
            parent[rng.choice(NAMES)] = rng.choice(VALUES)
        case "double" if isinstance(parent, list):
            parent.insert(last, parent[last])
        case "swap" if isinstance(parent, list):
            rng.shuffle(parent)
        case "many" if isinstance(parent, list):
            parent[:] = parent * rng.choice((2, 50, 300))
    return row


def cases(count: int) -> list[Case]:
    found = []
    for number in range(count):
        rng = random.Random(f"row {number}")
        layout = LAYOUTS[number % len(LAYOUTS)]
        row, twice = rng.choice(rows_in(layout)), False
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
            if row:
                row = mutated(row, rng)
        text = json.dumps(row)
        match rng.randrange(12):
            case 0:
                start = rng.choice(TEXTS)
                name = next(iter(json.loads(f'{start}"zz": 0}}')), "")
                twice = start.startswith(('{"id"', '{"":')) or name in row
                text = start + text.removeprefix("{") if row else text
                twice &= bool(row)
            case 1:
                text = text[: rng.randrange(len(text) + 1)] or "{"
            case 2:
                place = rng.randrange(len(text))
                text = (
                    text[:place] + rng.choice(('"', "}", "[", "\\u0000", "\\ud83d", "NaN", "1e999", ",")) + text[place:]
                )
            case 3:
                text = rng.choice(("null", "3", '"text"', "[]", "[" * 100_000, '{"a":' * 100_000, "9" * 5_000))
        found.append(Case(SCHEMA_OF[layout], text, twice))
    return found


def rows_of(case: Case, folder: Path) -> SourceRows:
    """The rows of a source of the case's schema."""
    schema = next(schema for schema in SCHEMAS if schema.name == case.schema)
    return SourceRows(Source(path=folder / "rows.jsonl", images=folder), "rows", None, schema, "", parse_row)


def check(case: Case, folder: Path) -> str | None:
    """The line by which a row is refused; None if it is a sample that encodes."""
    rows = rows_of(case, folder)

    def read():
        sample = rows.sample({ROW: case.text}, 0)
        assert sample is not None, "nothing is filtered"
        assert all(str(file).startswith(f"{folder}/") for file in sample.images if isinstance(file, Path))
        try:
            encoded = encode(sample, PROCESSOR, LONGEST)
        except SampleTooLong:
            return
        assert (encoded["labels"] != -100).any()

    try:
        with alarm(), nothing_done():
            line = refused(read)
            name = rows.name_of({ROW: case.text}, 0)
    except BaseException as error:
        raise AssertionError(f"{case}: {type(error).__name__}: {str(error)[:300]}") from error
    assert len(name.encode()) < 2_000
    assert line is not None or not case.is_twice, f"a key stands twice: {case}"
    return line


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    return tmp_path


def check_all(found: list[Case], folder: Path) -> list[str | None]:
    """What is said of each case by itself. An index of all of a schema's says the same."""
    lines = [check(case, folder / "pictures") for case in found]
    for schema in sorted({case.schema for case in found}):
        numbers = [number for number, case in enumerate(found) if case.schema == schema and case.text.strip()]
        path = folder / f"{schema}.jsonl"
        path.write_text("".join(found[number].text.replace("\n", " ") + "\n" for number in numbers))
        source = Source(path=path, images=folder / "pictures", schema_name=schema)
        (built,) = build_indexes([source], PROCESSOR, folder / "indexes", decode=True)
        index = Index(built, source)
        for row, number in enumerate(numbers):
            assert bool(index.is_bad[row]) == (lines[number] is not None), (found[number], lines[number])
        for row, (_, reason) in enumerate(index.ids_and_reasons(range(len(index)))):
            assert reason is None or (len(reason) < 480 and reason.isprintable()), (found[numbers[row]], reason)
    return lines


PROCESSOR = tiny_processor()


@pytest.mark.fuzz
def test_rows(folder):
    lines = check_all(cases(CASES), folder)
    accepted = sum(line is None for line in lines)
    assert CASES / 10 < accepted < CASES * 9 / 10, "some are samples and some are not"


def test_a_sample_of_rows(folder):
    assert {line is None for line in check_all(cases(SAMPLE), folder)} == {True, False}
