"""SEED-Bench: one question of each type about a picture, two about one picture, and one about a video."""

import json
from pathlib import Path

import datasets

from data.benchmarks.seed_image import TYPES
from tests.benchmark_files.pictures import stored, write_png
from tests.benchmark_files.tables import write_split

SUFFIX = "\nAnswer with the option's letter from the given choices directly."
COLORS = ("red", "green", "blue", "grey")
QUESTIONS = [
    {
        "answer": "ABCD"[number % 4],
        "choice_a": f"{number} a",
        "choice_b": "None",
        "choice_c": "c",
        "choice_d": "d",
        "data_id": f"1454426_{2591111986 + number // 2}",
        "data_type": "image",
        "question": f"What of {kind}?",
        "question_id": str(101669 + number),
        "question_type_id": number,
    }
    for number, kind in TYPES.items()
]
VIDEO = QUESTIONS[0] | {"data_type": "video", "question_id": "v1_7", "question_type_id": 10, "data_id": "7.mp4"}


def write_llava(folder: Path) -> None:
    lines = []
    for question in [VIDEO, *QUESTIONS]:
        options = "".join(f"\n{letter}. {question[f'choice_{letter.lower()}']}" for letter in "ABCD")
        of_image = question["data_type"] == "image"
        image = f"SEED-Bench-image/{question['data_id']}" if of_image else "SEED-Bench-video-image/v1_7.png"
        identifier = int(question["question_id"]) if of_image else question["question_id"]
        text = question["question"] + options + SUFFIX
        lines.append({"question_id": identifier, "image": image, "text": text, "category": "Any"})
        if of_image:
            write_png(folder / image, _color(question))
    (folder / "llava-seed-bench.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    kinds = {kind: number for number, kind in TYPES.items()}
    (folder / "SEED-Bench.json").write_text(json.dumps({"question_type": kinds, "questions": [VIDEO, *QUESTIONS]}))


def write_hub(folder: Path) -> None:
    frames = [stored(color) for color in COLORS]
    rows = [question | {"image": [stored(_color(question))], "segment": None} for question in QUESTIONS]
    rows.insert(3, VIDEO | {"image": frames, "segment": ["0", "1"]})
    write_split(rows, {"image": datasets.List(datasets.Image())}, folder / "data", "test")


def _color(question: dict) -> str:
    return COLORS[int(question["data_id"][-1]) % len(COLORS)]
