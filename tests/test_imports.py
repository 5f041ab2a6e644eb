"""Who may import whom: the rooms know only those below them, and an exported modelling file only its siblings."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("modeling", "training", "data", "checkpoints", "scripts", "tests", "train")
ALLOWED = {
    "modeling": set(),
    "data": {"data", "modeling.user_error"},
    "checkpoints": {"checkpoints", "modeling"},
    "training": {"training", "checkpoints", "data", "modeling"},
    "scripts": {"training", "checkpoints", "data", "modeling"},
}
EXPORTED = sorted((ROOT / "modeling").glob("*.py"))


def sources():
    for room in ALLOWED:
        yield from ((room, path) for path in sorted((ROOT / room).rglob("*.py")))


def wrong_imports(room: str, tree: ast.AST) -> list[str]:
    """Imports that `room` may not make."""
    found = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        for name in names:
            top = name.split(".")[0]
            if top in ROOMS and not {top, name} & ALLOWED[room]:
                found.append(name)
    return found


def wrong_export(tree: ast.AST) -> list[str]:
    """What transformers' copier of remote code cannot follow, or a reader's machine does not have."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if (
                node.level > 1
                or (node.level == 1 and (node.module is None or "." in node.module))
                or (node.level == 0 and not allowed_outside(node.module))
            ):
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if not allowed_outside(alias.name)]
    return found


def allowed_outside(module: str) -> bool:
    top = module.split(".")[0]
    return top in ("torch", "transformers") or top in sys.stdlib_module_names or module == "huggingface_hub.dataclasses"


@pytest.mark.parametrize("room, path", list(sources()), ids=lambda value: str(value).removeprefix(f"{ROOT}/"))
def test_rooms_import_only_what_lies_below(room, path):
    assert wrong_imports(room, ast.parse(path.read_text())) == []


@pytest.mark.parametrize("path", EXPORTED, ids=lambda path: path.name)
def test_exported_files_stand_alone(path):
    assert wrong_export(ast.parse(path.read_text())) == []
    lines = path.read_text().splitlines()
    copied_by_mistake = [line for line in lines if line.strip().startswith("from .") and not line.startswith("from .")]
    assert copied_by_mistake == []  # the copier is a regular expression and reads docstrings too


def test_modeling_is_flat():
    assert [path for path in (ROOT / "modeling").iterdir() if path.is_dir() and path.name != "__pycache__"] == []


@pytest.mark.parametrize(
    "line",
    ["import numpy", "from . import x", "from .a.b import x", "from modeling.a import x", "from ..data import x"],
)
def test_a_wrong_exported_import_is_noticed(line):
    assert wrong_export(ast.parse(line))


def test_a_wrong_room_import_is_noticed():
    assert wrong_imports("data", ast.parse("import training.recipe.recipe")) == ["training.recipe.recipe"]
