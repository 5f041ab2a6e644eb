"""VizWiz: test in both layouts, and the validation part in the Hub's."""

import json
from pathlib import Path

import datasets

from tests.benchmark_files.pictures import stored, write_png
from tests.benchmark_files.tables import write_split

ROWS = (
    # number of the picture, colour, question as people wrote it, what ten people answer
    (3, "red", "What is this? Is it MILK?", ["milk"] * 4 + ["Milk."] * 2 + ["unanswerable"] * 4),
    (4, "blue", "what color is my shirt?", ["blue"] * 9 + ["navy"]),
    (7, "green", "Can you tell me what this says?", ["unanswerable"] * 8 + ["a sign", "sign"]),
    (9, "white", "what's in the box", ["cereal"] * 2 + ["the cereal"] + ["box"] * 7),
)
SUFFIX = (
    "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
    "\nAnswer the question using a single word or phrase."
)


def write_llava(folder: Path) -> None:
    folder.mkdir(parents=True)
    asked = []
    for picture, color, question, _ in ROWS:
        name = f"VizWiz_test_{picture:08}.jpg"
        text = question[0].upper() + question[1:].lower() + SUFFIX
        asked.append({"question_id": picture, "image": name, "text": text, "category": "default"})
        write_png(folder / "test" / name, color)
    (folder / "llava_test.jsonl").write_text("\n".join(json.dumps(row) for row in asked))


def write_hub(folder: Path) -> None:
    for split in ("val", "test"):
        rows = [
            {
                "question_id": f"VizWiz_{split}_{picture:08}",
                "image": stored(color),
                "question": question,
                "answers": people if split == "val" else None,
            }
            for picture, color, question, people in ROWS
        ]
        write_split(rows, {"image": datasets.Image()}, folder / "data", split)
