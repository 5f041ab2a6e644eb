"""VQAv2: test-dev in both layouts, and the validation part in the Hub's."""

import json
from pathlib import Path

import datasets

from tests.benchmark_files.pictures import stored, write_png
from tests.benchmark_files.tables import write_split

ROWS = (
    # id, picture, colour, question, type of its answers, what ten people answer
    (42000, 42, "red", "What color is it?", "other", ["red"] * 6 + ["dark red"] * 3 + ["crimson"]),
    (42001, 42, "red", "Is it red?", "yes/no", ["yes"] * 10),
    (42002, 42, "red", "How many are there?", "number", ["2"] * 2 + ["two"] * 2 + ["3"] * 6),
    (77000, 77, "blue", "What is the cup's owner?", "other", ["The man"] + ["woman"] * 3 + ["nobody"] * 6),
)
UNASKED = 99000
"""A question of test2015 that is not one of test-dev."""
SUFFIX = "\nAnswer the question using a single word or phrase."


def write_llava(folder: Path) -> None:
    folder.mkdir(parents=True)
    asked = [
        {"question_id": id, "image": f"COCO_test2015_{picture:012}.jpg", "text": text + SUFFIX, "category": "default"}
        for id, picture, _, text, *_ in ROWS
    ]
    (folder / "llava_vqav2_mscoco_test-dev2015.jsonl").write_text("\n".join(json.dumps(row) for row in asked))
    whole = [{**asked[0], "question_id": UNASKED}, *asked]
    (folder / "llava_vqav2_mscoco_test2015.jsonl").write_text("\n".join(json.dumps(row) for row in whole))
    for _, picture, color, *_ in ROWS:
        write_png(folder / "test2015" / f"COCO_test2015_{picture:012}.jpg", color)


def write_hub(folder: Path) -> None:
    for split in ("validation", "testdev"):
        rows = []
        for id, picture, color, question, kind, people in ROWS:
            answers = [
                {"answer": answer, "answer_confidence": "yes", "answer_id": number}
                for number, answer in enumerate(people, start=1)
            ]
            rows.append(
                {
                    "question_type": "none of the above",
                    "multiple_choice_answer": people[-1],
                    "answers": answers if split == "validation" else None,
                    "image_id": picture,
                    "answer_type": kind if split == "validation" else None,
                    "question_id": id,
                    "question": question,
                    "image": stored(color),
                }
            )
        write_split(rows, {"image": datasets.Image()}, folder / "data", split)
