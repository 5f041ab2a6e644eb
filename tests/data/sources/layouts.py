"""The same conversations in every schema and every format of files."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import datasets
from datasets.arrow_writer import ArrowWriter

CONVERSATIONS = [
    (("what shape ?", "circle"), ("what colour ?", "red")),
    (("is there a cross ?", "no"),),
]
SCHEMA_OF = {
    "llava": "llava",
    "messages": "messages",
    "unmarked messages": "messages",
    "typed messages": "messages",
    "texts": "texts",
    "prompt": "prompt",
}
"""Layout of rows -> its schema."""
LAYOUTS = tuple(SCHEMA_OF)
WITH_PATHS = ("json", "jsonl", "json.gz", "jsonl.gz", "parquet", "arrow", "saved")
WITH_BYTES = ("parquet", "arrow", "saved", "tar")
"""Formats of files that hold pictures."""


def part(kind, text=None):
    """A part as `datasets` gives it, where every struct has all fields."""
    return {"type": kind, "text": text, "index": None}


def rows_in(layout: str) -> list[dict]:
    """Two conversations about the picture a.png, and one without, in a layout."""
    rows = []
    for number, turns in enumerate((*CONVERSATIONS, CONVERSATIONS[1])):
        picture = number < len(CONVERSATIONS)
        images = ["a.png"] if picture else None
        flat = [text for turn in turns for text in turn]
        roles = ("user", "assistant") * len(turns)
        marked = ["<image>\n" * picture + flat[0], *flat[1:]]
        match layout:
            case "llava":
                speakers = ("human", "gpt") * len(turns)
                turns_of_row = [{"from": who, "value": text} for who, text in zip(speakers, marked, strict=True)]
                rows.append(
                    {"id": str(number), "conversations": turns_of_row} | ({"image": "a.png"} if picture else {})
                )
            case "messages":
                messages = [{"role": role, "content": text} for role, text in zip(roles, marked, strict=True)]
                rows.append({"id": number, "messages": messages, "images": images})
            case "unmarked messages":
                messages = [{"role": role, "content": text} for role, text in zip(roles, flat, strict=True)]
                rows.append({"id": number, "messages": messages, "images": images})
            case "typed messages":
                messages = [
                    {"role": role, "content": [part("text", text)]} for role, text in zip(roles, flat, strict=True)
                ]
                if picture:
                    messages[0]["content"].insert(0, part("image"))
                rows.append({"id": number, "messages": messages, "images": images or []})
            case "texts":
                texts = [{"user": question, "assistant": answer, "source": "x"} for question, answer in turns]
                rows.append({"id": number, "texts": texts, "images": images, "source": "x"})
            case "prompt":
                *before, last = [{"role": role, "content": text} for role, text in zip(roles, flat, strict=True)]
                rows.append(
                    {"id": number, "prompt": before, "completion": [last], "image": "a.png" if picture else None}
                )
    return rows


def write_rows(rows: list[dict], folder: Path, form: str, picture: bytes | None = None) -> Path:
    """Writes rows in a format of files. Returns the path.

    Args:
        picture: a picture that takes the place of every path in the rows.
    """
    path = folder / f"rows.{form}"
    match form:
        case "json":
            path.write_bytes(json.dumps(rows).encode())
        case "jsonl":
            path.write_bytes(json_lines(rows))
        case "json.gz":
            path.write_bytes(gzip.compress(json.dumps(rows).encode()))
        case "jsonl.gz":
            path.write_bytes(gzip.compress(json_lines(rows)))
        case "tar":
            write_shard(path, rows, picture)
        case _:
            write_table(path, rows, form, picture)
    return path


def json_lines(rows: list[dict]) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def write_shard(path: Path, rows: list[dict], picture: bytes | None) -> None:
    members = []
    for number, row in enumerate(rows):
        members.append((f"{number:04}.json", json.dumps(row).encode()))
        named = row.get("image") or row.get("images") or []
        members += [(f"{number:04}.{one}.png", picture) for one in range(1 if isinstance(named, str) else len(named))]
    write_tar(path, members)


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_table(path: Path, rows: list[dict], form: str, picture: bytes | None) -> None:
    columns = {name: None for row in rows for name in row}
    whole = [columns | row for row in rows]
    table = datasets.Dataset.from_list(whole)
    if picture is not None:
        embedded = {"bytes": picture, "path": None}
        if "image" in columns:
            values, feature = [row["image"] and embedded for row in whole], datasets.Image()
        else:
            values = [row["images"] and [embedded] * len(row["images"]) for row in whole]
            feature = datasets.List(datasets.Image())
        name = "image" if "image" in columns else "images"
        table = table.remove_columns(name).add_column(name, values, feature=feature)
    if form == "parquet":
        table.to_parquet(path)
    elif form == "saved":
        table.save_to_disk(path)
    else:
        with ArrowWriter(path=str(path), features=table.features) as writer:
            writer.write_table(table.data.table)
            writer.finalize()
