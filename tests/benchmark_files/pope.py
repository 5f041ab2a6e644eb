"""POPE: two pictures, six questions."""

import json
from pathlib import Path

import datasets

from tests.benchmark_files.pictures import stored, write_png
from tests.benchmark_files.tables import write_split

ROWS = (
    # id, picture, colour, split, question, answer
    (10000001, "COCO_val2014_000000000007", "red", "adversarial", "Is there a cup in the image?", "yes"),
    (10000002, "COCO_val2014_000000000007", "red", "adversarial", "Is there a fork in the image?", "no"),
    (20000001, "COCO_val2014_000000000007", "red", "popular", "Is there a cup in the image?", "yes"),
    (20000002, "COCO_val2014_000000000042", "blue", "popular", "Is there a person in the image?", "no"),
    (30000001, "COCO_val2014_000000000042", "blue", "random", "Is there a kite in the image?", "yes"),
    (30000002, "COCO_val2014_000000000042", "blue", "random", "Is there a zebra in the image?", "no"),
)
SUFFIX = "\nAnswer the question using a single word or phrase."


def write_llava(folder: Path) -> None:
    (folder / "coco").mkdir(parents=True)
    asked = [
        {"question_id": id, "image": f"{image}.jpg", "text": question + SUFFIX, "category": split}
        for id, image, _, split, question, _ in ROWS
    ]
    (folder / "llava_pope_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    for wanted in ("adversarial", "popular", "random"):
        labels = [
            {"question_id": number, "image": f"{image}.jpg", "text": question, "label": answer}
            for number, (_, image, _, split, question, answer) in enumerate(ROWS, start=1)
            if split == wanted
        ]
        path = folder / "coco" / f"coco_pope_{wanted}.json"
        path.write_text("\n".join(json.dumps(row) for row in labels))
    for _, image, color, *_ in ROWS:
        write_png(folder / "val2014" / f"{image}.jpg", color)


def write_hub(folder: Path) -> None:
    rows = [
        {
            "id": str(number),
            "question_id": str(id),
            "question": question,
            "answer": answer,
            "image_source": image,
            "image": stored(color),
            "category": split,
        }
        for number, (id, image, color, split, question, answer) in enumerate(ROWS)
    ]
    write_split(rows, {"image": datasets.Image()}, folder / "data", "test")
