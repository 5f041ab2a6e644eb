"""COCO's validation of 2017: four pictures with captions. LLaVA has no files of it."""

from pathlib import Path

import datasets

from tests.benchmark_files.pictures import stored
from tests.benchmark_files.tables import write_split

CAPTIONS = {
    139: ["A red square.", "The square is red.", "A picture of a red square"],
    285: ["A big brown bear.", "A bear's head in the grass"],
    632: ["A bed with a bookshelf, and a window.", "A bedroom with a blue bed"],
    724: ["A stop sign on a corner", "A stop-sign, upside down."],
}
COLORS = ("red", "brown", "blue", "white")


def write_hub(folder: Path) -> None:
    rows = [
        {
            "question_id": f"{number:012}.jpg",
            "image": stored(color),
            "question": "Please carefully observe the image and come up with a caption for the image",
            "answer": captions,
            "id": number,
            "license": 3,
            "file_name": f"{number:012}.jpg",
        }
        for (number, captions), color in zip(CAPTIONS.items(), COLORS, strict=True)
    ]
    write_split(rows, {"image": datasets.Image()}, folder / "data", "val")
