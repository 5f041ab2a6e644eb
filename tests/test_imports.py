"""Who may import whom: the rooms know only those below them, and an exported modelling file only its siblings."""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("modeling", "training", "data", "checkpoints", "scripts", "tests", "train")
ALLOWED = {
    "modeling": set(),
    "data": {"data", "modeling.user_error", "modeling.whole_file"},
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


# ---- rooms within training ----

FLOORS = (
    {"compiled_ops", "files", "launchers", "schema", "stops"},
    {"changes", "cli", "journal", "ranks"},
    {"inputs", "progress"},
    {"starts"},
    {"run"},
    {"measure"},
    {"planners"},
    {"recipe"},
    {"evaluation"},
    {"distillation", "instruct", "tiny_llava"},
    {"gates", "report"},
    {"tasks"},
)
"""The rooms and files of `training`, from the ground up. Each imports from itself and from the floors below it."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MOST_FILES = 14
"""Of one room. modeling/ is exported as it is."""
ONE_FILE_EACH = {ROOT / "training" / "planners", ROOT / "training" / "recipe", ROOT / "data" / "benchmarks"}
"""Rooms where each method, each section of a recipe, or each benchmark, has a file."""


def training_imports(tree: ast.AST) -> set[str]:
    """Modules of `training` that are imported anywhere in a file, for types alone or in a function as well."""
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 0}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return {module for module in modules if module and module.split(".")[0] == "training"}


def imports_upward(room: str, tree: ast.AST) -> list[str]:
    """Imports from a floor that is not below the room's own."""
    rooms = [(module, module.split(".")[1]) for module in training_imports(tree) if "." in module]
    return [module for module, other in rooms if other != room and FLOOR[other] >= FLOOR[room]]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "training").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_no_room_of_training_imports_upward(path):
    room = path.relative_to(ROOT / "training").with_suffix("").parts[0]
    assert room in FLOOR or room == "__init__", "a new room or file: give it a floor"
    if room in FLOOR:
        assert imports_upward(room, ast.parse(path.read_text())) == []


def test_an_import_upward_is_noticed():
    assert imports_upward("measure", ast.parse("def f():\n    from training.tasks.stages import distil"))
    assert imports_upward("gates", ast.parse("from training.report.style import plain")), "two rooms of one floor"
    assert not imports_upward("tasks", ast.parse("from training.measure.price import PlanPrice"))


def executed_imports(tree: ast.AST) -> set[str]:
    """Modules of this project whose import is executed when the file is imported."""
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node not in skipped}
    return {module for module in found if module and module.split(".")[0] in ALLOWED}


def module_graph(sources_of: dict[str, str]) -> dict[str, set[str]]:
    """Module -> modules that it imports, each with its source."""
    return {name: executed_imports(ast.parse(source)) & sources_of.keys() for name, source in sources_of.items()}


def test_no_imports_go_in_a_circle():
    files = {path for _, path in sources()}
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}
    list(TopologicalSorter(module_graph({name: path.read_text() for name, path in names.items()})).static_order())


def test_a_circle_is_noticed():
    circle = {"data.a": "from data.b import x", "data.b": "from data.a import y"}
    with pytest.raises(CycleError):
        list(TopologicalSorter(module_graph(circle)).static_order())


@pytest.mark.parametrize("top", ["training", "data", "checkpoints"])
def test_no_room_is_crowded(top):
    folders = [ROOT / top, *filter(Path.is_dir, (ROOT / top).rglob("*"))]
    crowded = {folder for folder in folders if len(list(folder.glob("*.py"))) > MOST_FILES}
    assert crowded - ONE_FILE_EACH == set()
