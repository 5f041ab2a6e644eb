"""A recipe of `task: instruct` small enough to run in a test, and what it reads."""

from pathlib import Path

import datasets

from tests.families.llava import DINOV2
from tests.training.instruct.tiny_instruct import TURNS, png, tiny_processor
from training.recipe.instruct import InstructRecipe

OPTIMIZER = {"steps": 2, "micro_batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 0, "precision": "float32"}


def tiny_instruct_recipe(folder: Path, *, output: str | None = None, **data) -> InstructRecipe:
    """The recipe for what `save_instruct_inputs` wrote to `folder`; `data` overrides keys of that section."""
    return InstructRecipe.model_validate(
        {
            "name": "tiny",
            "task": "instruct",
            "seed": 0,
            "model": {"path": str(folder / "base"), "output": output or str(folder / "taught")},
            "data": {
                "train": {"path": str(folder / "train.parquet")},
                "things": "things",
                "evaluation": {"path": str(folder / "test.parquet")},
                "max_length": 128,
                **data,
            },
            "naming": OPTIMIZER,
            "lora": {"rank": 2, "alpha": 4},
            "tuning": OPTIMIZER | {"projector_learning_rate": 1e-2, "lr_schedule": "cosine_at_last"},
            "evaluation_batch_size": 4,
        }
    )


def save_instruct_inputs(folder: Path) -> None:
    """Writes a dense model, rows to train on, and rows to ask."""
    DINOV2.dense().save_pretrained(folder / "base")
    tiny_processor().save_pretrained(folder / "base")
    for name, turns in (("train", TURNS), ("test", TURNS[:1])):
        messages = [
            {"from": speaker, "value": text}
            for turn in turns
            for speaker, text in zip(("human", "gpt"), turn, strict=True)
        ]
        messages[0]["value"] = "<image>\n" + messages[0]["value"]
        rows = [
            {
                "id": f"{name}-{number}",
                "image": {"bytes": png(number), "path": f"{number}.png"},
                "conversations": messages,
                "family": "existence",
                "things": [
                    {"name": name, "x": 0, "y": 0, "width": 12, "height": 20}
                    for name in ("cross", "circle")[: 1 + number % 2]
                ],
            }
            for number in range(6)
        ]
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")
