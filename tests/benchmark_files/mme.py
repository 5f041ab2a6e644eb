"""MME: a picture of each of the fourteen subtasks, and one more of the first."""

import json
from pathlib import Path

import datasets

from tests.benchmark_files.pictures import stored, write_png
from tests.benchmark_files.tables import write_split

PERCEPTION = (
    ("existence", "count", "position", "color", "OCR"),  # their files lie together
    ("posters", "celebrity", "scene", "landmark", "artwork"),  # their pictures and questions lie apart
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
COLORS = ("red", "green", "blue", "yellow", "cyan", "magenta", "white", "black", "gray", "orange")
SUFFIX = "\nAnswer the question using a single word or phrase."
ASKED = " Please answer yes or no."


def rows() -> list[tuple[str, str, str, str, str]]:
    """Category, picture's id, colour, question and answer of each question, two about each picture."""
    named = [(category, f"{category}/0001.png") for category in (*PERCEPTION[0], *COGNITION)]
    named += [(category, f"{category}/images/0001.png") for category in PERCEPTION[1]]
    named.append(("existence", "existence/0002.png"))
    found = []
    for number, (category, picture) in enumerate(named):
        color = COLORS[number % len(COLORS)]
        found.append((category, picture, color, f"Is thing {number} here?", "Yes"))
        found.append((category, picture, color, f"Is thing {number} elsewhere?", "No"))
    return found


def write_llava(folder: Path) -> None:
    folder.mkdir(parents=True)
    release = folder / "MME_Benchmark_release_version"
    asked = []
    for category, picture, color, question, answer in rows():
        asked.append({"question_id": picture, "image": picture, "text": question + SUFFIX, "category": category})
        write_png(release / picture, color)
        apart = "/images/" in picture
        truth = release / category / ("questions_answers_YN" if apart else "") / f"{Path(picture).stem}.txt"
        truth.parent.mkdir(parents=True, exist_ok=True)
        with truth.open("a") as file:  # some of its files have two spaces here
            file.write(f"{question}{' ' if apart else ''}{ASKED}\t{answer}\n")
    (folder / "llava_mme.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))


def write_hub(folder: Path) -> None:
    table = [
        {
            "question_id": picture,
            "image": stored(color),
            "question": question + ASKED,
            "answer": answer,
            "category": category,
        }
        for category, picture, color, question, answer in rows()
    ]
    write_split(table, {"image": datasets.Image()}, folder / "data", "test")
