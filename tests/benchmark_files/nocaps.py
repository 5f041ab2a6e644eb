"""NoCaps' validation: four pictures with captions. LLaVA has no files of it."""

from pathlib import Path

import datasets

from tests.benchmark_files.coco_captions import CAPTIONS, COLORS
from tests.benchmark_files.pictures import stored
from tests.benchmark_files.tables import write_split


def write_hub(folder: Path) -> None:
    rows = [
        {"image": stored(color), "image_id": number, "annotations_ids": [0, 1], "annotations_captions": captions}
        for (number, captions), color in zip(CAPTIONS.items(), COLORS, strict=True)
    ]
    write_split(rows, {"image": datasets.Image()}, folder / "data", "validation")
