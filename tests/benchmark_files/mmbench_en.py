"""MMBench's English dev part: a question in four rotations, one in two, one in three with a hint."""

import base64
import csv
from pathlib import Path

import datasets

from tests.benchmark_files.pictures import png, stored
from tests.benchmark_files.tables import write_split

BASES = [
    {
        "index": 241,
        "hint": "",
        "question": "What is the colour?",
        "options": ["blue", "dark red", "red", "green"],
        "answer": 2,
        "category": "attribute_recognition",
        "l2-category": "finegrained_perception (instance-level)",
    },
    {
        "index": 252,
        "hint": "",
        "question": 'Is it "round"?',
        "options": ["yes", "no"],
        "answer": 1,
        "category": "attribute_recognition",
        "l2-category": "finegrained_perception (instance-level)",
    },
    {
        "index": 300,
        "hint": "People sleep\nat night.",
        "question": "When was this taken?",
        "options": ["at night", "at noon", "never"],
        "answer": 0,
        "category": "future_prediction",
        "l2-category": "logic_reasoning",
    },
]
COLORS = {241: "red", 252: "blue", 300: "black"}


def rows_of(bases: list[dict]) -> list[dict]:
    """The questions, then their rotations. What is missing is None."""
    rows = []
    for turn in range(4):
        for base in bases:
            options = base["options"]
            if turn < len(options):
                turned = options[turn:] + options[:turn]
                rows.append(
                    {"index": base["index"] + turn * 1_000_000, "question": base["question"], "hint": base["hint"]}
                    | {letter: turned[i] if i < len(turned) else None for i, letter in enumerate("ABCD")}
                    | {"answer": "ABCD"[turned.index(options[base["answer"]])], "category": base["category"]}
                    | {"source": "made", "l2-category": base["l2-category"], "comment": None, "split": "dev"}
                )
    return rows


def write_tsv(path: Path, bases: list[dict]) -> None:
    """The first copies hold their pictures, later ones the index of the row that does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows_of(bases)[0], "image"], delimiter="\t")
        writer.writeheader()
        for row in rows_of(bases):
            base = row["index"] % 1_000_000
            picture = base64.b64encode(png(COLORS[base])).decode()
            writer.writerow(row | {"image": picture if row["index"] < 2_000_000 else base})


def write_parquet(folder: Path, bases: list[dict], index: type = int) -> None:
    """What is missing is the text "nan", as on the Hub."""
    rows = []
    for row in rows_of(bases):
        base = row["index"] % 1_000_000
        filled = {name: "nan" if value in (None, "") else value for name, value in row.items()}
        filled["L2-category"] = filled.pop("l2-category")
        rows.append(filled | {"index": index(row["index"]), "image": stored(COLORS[base])})
    write_split(rows, {"image": datasets.Image()}, folder, "dev")


def write_llava(folder: Path) -> None:
    write_tsv(folder / "mmbench_dev_20230712.tsv", BASES)


def write_hub(folder: Path) -> None:
    write_parquet(folder / "en", BASES, str)
