"""GQA: two pictures, five questions."""

import json
from pathlib import Path

import datasets

from tests.benchmark_files.pictures import stored, write_png
from tests.benchmark_files.tables import write_split

PICTURES = {"n1001": "red", "n1002": "blue"}
ROWS = (
    # id, picture, question, answer, full answer
    ("201000001", "n1001", "What color is the wall?", "red", "The wall is red."),
    ("201000002", "n1001", "Is there any cup to the left of the wall?", "no", "No, there are no cups."),
    ("201000003", "n1002", "What is on the table?", "paper towel", "The paper towel is on the table."),
    ("201000004", "n1002", "On which side is the cup?", "left", "The cup is on the left side."),
    ("201000005", "n1002", "Is the table blue?", "yes", "Yes, the table is blue."),
)
SUFFIX = "\nAnswer the question using a single word or phrase."


def write_llava(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    asked = [
        {"question_id": id, "image": f"{picture}.jpg", "text": question + SUFFIX, "category": "default"}
        for id, picture, question, *_ in ROWS
    ]
    (folder / "llava_gqa_testdev_balanced.jsonl").write_text("\n".join(json.dumps(row) for row in asked))
    truths = {
        id: {"question": question, "imageId": picture, "answer": answer, "fullAnswer": full, "isBalanced": True}
        for id, picture, question, answer, full in ROWS
    }
    (folder / "data" / "testdev_balanced_questions.json").write_text(json.dumps(truths))
    for picture, color in PICTURES.items():
        write_png(folder / "data" / "images" / f"{picture}.jpg", color)


def write_hub(folder: Path) -> None:
    questions = [
        {"id": id, "imageId": picture, "question": question, "answer": answer, "fullAnswer": full}
        for id, picture, question, answer, full in ROWS
    ]
    write_split(questions, {}, folder / "testdev_balanced_instructions", "testdev")
    # The pictures stand in another order than the questions about them.
    pictures = [{"id": picture, "image": stored(color)} for picture, color in reversed(PICTURES.items())]
    write_split(pictures, {"image": datasets.Image()}, folder / "testdev_balanced_images", "testdev")
