"""ScienceQA's test problems, three with a picture and one without."""

import json
from pathlib import Path

import datasets

from tests.benchmark_files.pictures import stored, write_png
from tests.benchmark_files.tables import write_split

PROBLEMS = [
    {
        "id": "5",
        "hint": "The sky is clear.",
        "question": "Which colour is it?",
        "choices": ["red", "blue"],
        "answer": 1,
    },
    {"id": "7", "hint": "", "question": "Is this a stone?", "choices": ["yes", "no", "maybe"], "answer": 0},
    {"id": "9", "hint": "Two lines.\nOf context.", "question": "Pick E.", "choices": list("vwxyz"), "answer": 4},
]
COLORS = ("blue", "grey", "red")


def write_llava(folder: Path) -> None:
    problems = [{"id": "4", "conversations": _turns("Which word rhymes?\nA. cat\nB. dog", "A")}]
    for problem, color in zip(PROBLEMS, COLORS, strict=True):
        context = f"Context: {problem['hint']}\n" if problem["hint"] else ""
        options = "".join(f"\n{letter}. {text}" for letter, text in zip("ABCDE", problem["choices"], strict=False))
        asked = f"<image>\n{context}{problem['question']}{options}"
        image = f"{problem['id']}/image.png"
        turns = _turns(asked, "ABCDE"[problem["answer"]])
        problems.append({"id": problem["id"], "image": image, "conversations": turns})
        write_png(folder / "images" / "test" / image, color)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "llava_test_CQM-A.json").write_text(json.dumps(problems))


def write_hub(folder: Path) -> None:
    rows = [
        {name: problem[name] for name in ("hint", "question", "choices", "answer")} | {"image": stored(color)}
        for problem, color in zip(PROBLEMS, COLORS, strict=True)
    ]
    write_split(rows, {"image": datasets.Image()}, folder / "ScienceQA-IMG", "test")


def _turns(asked: str, answered: str) -> list[dict]:
    return [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}]
