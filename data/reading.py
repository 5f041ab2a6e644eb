"""Reads rows of conversations about pictures from JSON. The layouts of rows are those of data/schemas.py."""

import json
from pathlib import Path
from typing import Any

from data.images import find_image
from data.sample import BadSample, OnBadSample, Sample, check_bad_share
from data.schemas import Schema, read_row, schema_of
from modeling.user_error import UserError


def load_llava_json(
    json_path: Path, image_root: Path, *, on_bad_sample: OnBadSample = "error", max_bad_share: float = 0.0
) -> tuple[list[Sample], list[BadSample]]:
    """Reads and checks a file of rows of any schema. The picture files must be there, but are not opened.

    Args:
        json_path: a JSON list of rows, or JSON lines if it is called `.jsonl`.
        image_root: the folder that the rows' image paths are relative to and may not leave.
        on_bad_sample: "error" stops at the first bad row. "skip" leaves bad rows out and returns them.
        max_bad_share: with "skip", the largest share of bad rows, in [0, 1], that is not an error.

    Returns:
        The good rows as samples, and the bad ones.

    Raises:
        UserError: the file has no rows or no schema, a row is bad, or too many are.
    """
    samples, bad = [], []
    rows = _read_rows(json_path)
    schema = _schema_of_rows(json_path, rows)
    for index, row in enumerate(rows):
        try:
            samples.append(_sample(row, index, schema, image_root))
        except UserError as error:
            row_id = str(row["id"]) if isinstance(row, dict) and "id" in row else None
            reason = f"{json_path}: row {index} (id {row_id!r}): {error}"
            if on_bad_sample == "error":
                raise UserError(reason) from error
            bad.append(BadSample(row_id, index, reason))
    check_bad_share(bad, len(rows), max_bad_share)
    return samples, bad


def _read_rows(json_path: Path) -> list[Any]:
    try:
        text = Path(json_path).read_text(encoding="utf-8")
        if Path(json_path).suffix == ".jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            rows = json.loads(text)
    except OSError as error:
        raise UserError(f"{json_path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{json_path}: not JSON ({error})") from error
    if not isinstance(rows, list) or not rows:
        raise UserError(
            f"{json_path}: got {'no rows' if rows == [] else type(rows).__name__}, a list of rows is expected"
        )
    return rows


def _schema_of_rows(json_path: Path, rows: list[Any]) -> Schema:
    """Returns the schema that the columns of all rows together fit."""
    try:
        return schema_of({column for row in rows if isinstance(row, dict) for column in row})
    except UserError as error:
        raise UserError(f"{json_path}: {error}") from None


def _sample(row: Any, index: int, schema: Schema, image_root: Path) -> Sample:
    """Returns a row as a Sample. Raises UserError, which says what is wrong with it."""
    if not isinstance(row, dict):
        raise UserError(f"got {type(row).__name__}, a row is an object")
    read = read_row(row, schema)
    for name in read.pictures:
        if not isinstance(name, str):
            raise UserError(f"a picture is {type(name).__name__}, a path is expected in JSON")
    paths = tuple(find_image(image_root, name) for name in read.pictures)
    return Sample(f"row {index}" if read.id is None else read.id, paths, read.turns, read.family, read.system)
