"""What a reader of the report does next: files to open, where the training was followed, and commands to run."""

import shlex
from pathlib import Path

LINKS = {
    "checkpoint": "checkpoint/",
    "its card": "checkpoint/README.md",
    "plan": "plan.json",
    "figures": "result.json",
    "recipe": "recipe.yaml",
    "answers": "evaluation/",
}
"""Name of a link -> place in the run's folder."""


def links(folder: Path) -> dict[str, str]:
    """Returns name -> place in the run's folder, of all that is there."""
    return {name: place for name, place in LINKS.items() if (folder / place).exists()}


def commands(folder: Path) -> list[tuple[str, str, str]]:
    """Returns what can be done with the checkpoint of a run. Each has a name, a command and its page in docs/."""
    checkpoint = shlex.quote(str(folder / "checkpoint"))
    return [
        ("Chat", f"python scripts/chat.py {checkpoint} --image picture.png", "using.md"),
        (
            "Ask a benchmark",
            f"python scripts/evaluate.py --model {checkpoint} --benchmarks pope --hub lmms-lab",
            "benchmarks.md",
        ),
        ("Measure speed", f"python scripts/benchmark.py --model {checkpoint}", "costs.md"),
        ("Publish", f"python scripts/publish.py {checkpoint} OWNER/NAME --dry-run", "publishing.md"),
    ]


def trackers(recipe: dict, folder: Path) -> list[str]:
    """Returns for each tracker of a resolved recipe where it has the training."""
    students = shlex.quote(str(folder / "students"))
    return [
        f"tensorboard --logdir {students}" if name == "tensorboard" else f"{name}, run {recipe['name']}/student"
        for name in recipe["training"]["report_to"]
    ]
