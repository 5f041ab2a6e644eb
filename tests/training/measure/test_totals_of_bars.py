"""Every bar of a measurement or search has a total, so that it can tell how long it still takes."""

import ast
from pathlib import Path

import pytest

TRAINING = Path(__file__).parents[3] / "training"
FILES = [path for room in ("measure", "planners") for path in sorted((TRAINING / room).rglob("*.py"))]


def bars_without_total(source: str) -> list[str]:
    """Bars that are given neither what they run over nor a total."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    bars = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in ("tqdm", "Progress")]
    return [
        ast.unparse(bar) for bar in bars if not bar.args and all(keyword.arg != "total" for keyword in bar.keywords)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TRAINING)))
def test_every_bar_has_a_total(path):
    assert bars_without_total(path.read_text()) == []


def test_a_bar_without_one_is_noticed():
    assert bars_without_total("with Progress(desc='greedy plan', unit='plan') as progress: pass")
    assert not bars_without_total("Progress(range(3), desc='layers')")
