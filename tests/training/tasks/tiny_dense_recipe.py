"""A recipe of `task: dense` small enough to run in a test."""

from pathlib import Path

from training.recipe.dense import DenseRecipe


def tiny_dense_recipe(output: Path, **teacher) -> DenseRecipe:
    """The smallest sizes that still go through every stage; `teacher` overrides keys of that section."""
    phase = {
        "split": "train",
        "steps": 2,
        "warmup_steps": 0,
        "micro_batch_size": 4,
        "learning_rate": 1e-3,
        "tower_learning_rate": 1e-4,
        "word_learning_rate": 1e-4,
    }
    return DenseRecipe.model_validate(
        {
            "name": "tiny",
            "task": "dense",
            "seed": 0,
            "teacher": {
                "output": str(output),
                "max_length": 512,
                "model": {
                    "image_size": 96,
                    "patch_size": 16,
                    "tower_hidden_size": 32,
                    "tower_intermediate_size": 64,
                    "tower_layers": 1,
                    "hidden_size": 128,
                    "intermediate_size": 64,
                    "layers": 2,
                },
                "world": {
                    "seed": 0,
                    "splits": {
                        "train": {"part": "train", "rows": 60, "questions": 10},
                        "test": {"part": "test", "rows": 12},
                    },
                },
                "tower": {
                    "split": "train",
                    "steps": 2,
                    "warmup_steps": 0,
                    "micro_batch_size": 4,
                    "learning_rate": 1e-3,
                },
                "phases": [
                    {"name": "apart", "turns": "independent", **phase},
                    {"name": "together", "turns": "conversation", **phase},
                ],
                "evaluation_split": "test",
                "evaluation_batch_size": 12,
                **teacher,
            },
        }
    )
