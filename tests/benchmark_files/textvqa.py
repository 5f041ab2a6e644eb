"""TextVQA: two pictures, one of them without OCR tokens, four questions."""

import json
from pathlib import Path

import datasets

from tests.benchmark_files.pictures import stored, write_png
from tests.benchmark_files.tables import write_split

PICTURES = {"003a8ae2ef43b901": ("red", ["R", "Reebo", "Ex"]), "ff9b80a751bc3ecc": ("blue", [])}
ROWS = (
    # number, picture, question as people wrote it, what ten people answer
    (34602, "003a8ae2ef43b901", "what is the brand?", ["reebok"] * 7 + ["Reebok."] * 2 + ["nike"]),
    (34603, "003a8ae2ef43b901", "What Is Above?", ["ex"] * 3 + ["r"] * 7),
    (34604, "ff9b80a751bc3ecc", "what is the brand?", ["unanswerable"] * 10),
    (34605, "ff9b80a751bc3ecc", "how many signs are there?", ["one"] * 2 + ["1"] * 2 + ["none"] * 6),
)
SUFFIX = "\nAnswer the question using a single word or phrase."


def write_llava(folder: Path) -> None:
    folder.mkdir(parents=True)
    asked, truths = [], []
    for number, picture, question, people in ROWS:
        text = question[0].upper() + question[1:].lower() + "\nReference OCR token: " + ", ".join(PICTURES[picture][1])
        asked.append({"question_id": picture, "image": f"{picture}.jpg", "text": text + SUFFIX, "category": "default"})
        truths.append({"question_id": number, "image_id": picture, "question": question, "answers": people})
        write_png(folder / "train_images" / f"{picture}.jpg", PICTURES[picture][0])
    (folder / "llava_textvqa_val_v051_ocr.jsonl").write_text("\n".join(json.dumps(row) for row in asked))
    whole = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": truths[::-1]}
    (folder / "TextVQA_0.5.1_val.json").write_text(json.dumps(whole))


def write_hub(folder: Path) -> None:
    rows = [
        {
            "image_id": picture,
            "question_id": number,
            "question": question,
            "image": stored(PICTURES[picture][0]),
            "answers": people,
            "ocr_tokens": PICTURES[picture][1],
        }
        for number, picture, question, people in ROWS
    ]
    write_split(rows, {"image": datasets.Image()}, folder / "data", "validation")
