"""Recipes that are broken on purpose: each is refused in a line, or means something and is dry-run.

Every recipe of the project is changed in its values, names and structure, and in its text. What is accepted goes as far
as a run does without weights and data: what its first stage looks at of the model and the trackers, and all that a dry
run counts. `check_meaning` looks at its text for what must not have been accepted.
"""

import copy
import io
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from rich.console import Console

from tests.fuzz.guards import alarm, nothing_done, refused
from training.distillation.monitoring.trackers import refuse_missing_trackers
from training.recipe.file import RECIPES, load_recipe
from training.recipe.student import StudentRecipe
from training.tasks import dry_run as dry_runs
from training.tasks.forecast.assumptions import Assumptions
from training.tasks.forecast.sizes import build_on_meta
from training.tasks.starting_point import check_starting_point

CASES = 3_200
TINY = str(RECIPES.parent / "checkpoints" / "tiny-llava")
SHIPPED = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(RECIPES.glob("*.yaml"))}
PLANS: tuple[dict, ...] = (
    {"planner": "fastv", "keep": 0.5, "layer": 1},
    {"planner": "fastv", "budget": {"model_flops": 0.9}, "layer": 1},
    {"planner": "g_search", "tolerance": 0.1},
    {"planner": "himap", "keep": [0.5, 0.1], "layers": [1, 2]},
    {"planner": "keep"},
    {"planner": "p_sigmoid", "k": 0.5, "alpha": 4},
    {"planner": "pre_pruning", "keep": 0.3, "by": "random", "seed": 3},
    {"planner": "pyramid_drop", "keep": 0.5, "depths": [0.5]},
    {"planner": "random", "budget": {"kv_bytes": 0.5}, "seed": 0},
    {"planner": "operator_skip", "budget": {"visual_flops": 0.5}},
    {"planner": "shortv", "budget": {"visual_flops": 0.5}},
    {"planner": "v_skip", "start": 1},
    {"planner": "uniform", "budget": {"latency": 0.5}},
    {"planner": "vica", "budget": {"visual_flops": 0.5}},
    {"planner": "vtw", "tolerance": 0.1},
    {"planner": "yopo", "withdraw_from": 5, "ffn_kept": 0.5, "heads_kept": 0.5},
    {"planner": "file", "path": "recipes/plans/g_search_tiny_llava.json"},
    {"planner": "file", "path": "recipes/plans/yopo_llava_7b_12.json", "relative_depth": True},
    {"planner": "stack", "of": [{"planner": "fastv", "keep": 0.5}, {"planner": "vica", "budget": {"visual_flops": 1}}]},
    {"planner": "gates", "budget": {"visual_flops": 0.5}, "steps": 1, "start": {"planner": "vtw", "tolerance": 0.1}},
)
DEEP = "[" * 500 + "]" * 500
VALUES = (
    None, True, False, 0, 1, -1, 2, 3, 0.5, 1.0, -0.5, 1e-300, 1e300, 10**9, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**62,
    2**63, 10**400, -(10**400), float("inf"), float("-inf"), float("nan"), "", " ", "a", "0", "1e-3", "nan", "inf",
    "-inf", "1e400", "9" * 5_000, "x" * 300, "x" * 100_000, "../../../escaped", "/tmp/escaped", "~", ".", "..", "a/b",
    "a\0b", "a\nb", "\u202e", "é", "null", "true", "student", "teacher", "grey", "tower", "auto", "2026-13-45", "None",
    [], {}, [[]], [None], [0, 0], [0.5, 0.5000001], [2**32], [True], ["no_such_tracker"], {"a": 1}, {"": {}},
    {"planner": "gates"}, "recipes/deepspeed/zero2.json", "recipes/plans/yopo_llava_7b_12.json", "recipes/debug.yaml",
    "checkpoints/tiny-llava", "no_such_file.json", "/dev/zero", "/dev/stdin", "/proc/self/mem", "recipes",
)  # fmt: skip
"""What a value is replaced by."""
NUMBERS = (True, False, -1, 0, 1, 0.5, 2**32, 2**62, 2**63, 10**400, math.inf, -math.inf, math.nan, "nan", "1e400", "3")
"""What a number is replaced by."""
NAMES = ("name", "seed", "a", "", "x" * 300, "../a", "a/b", "plan", "budget", "0", "__class__", "model_config", "{}")
"""What a key is called then."""
TEXTS = (
    "seed: 1\n", "name: x\n", "!!python/object/apply:os.system ['touch escaped']\n", "a: &a [*a]\n", "<<: {seed: 1}",
    "x: !!int '3'\n", "1: 2\n", "? [a]\n: b\n", "&x\n", "*y\n", "%YAML 9.9\n", "---\n", "...\n", "\t- a\n", "x: 0x_\n",
    "x: 1:99:99\n", "x: 2026-13-45\n", "\0", "\x1b[2J", "\ufeff", "{", "]", "'", '"', "#", "- - - -\n", "x: .inf\n",
    "!<tag:yaml.org,2002:set> {a}\n", "x: !!python/name:os.system\n", "x: !!binary aaa\n", "x: [" * 500, "{a: " * 500,
    "x: " + "9" * 5_000 + "\n", "x: y\n" * 30_000, "x: 1.0e+99999\n", "? \n", "x: &" + "n" * 300 + " 1\n",
    "x" * 300_000,
    "a0: &a0 [1]\n" + "".join(f"a{n + 1}: &a{n + 1} [{','.join([f'*a{n}'] * 10)}]\n" for n in range(9)),  # a bomb
)  # fmt: skip
"""What is put between lines."""


class Case(NamedTuple):
    number: int
    base: str
    text: str
    overrides: tuple[str, ...]

    def __repr__(self) -> str:
        return f"case {self.number}, {self.base}, {self.overrides!r:.300}"


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths to everything inside a value."""
    if path:
        yield path
    for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(child, (*path, key))


def at(value: Any, path: tuple) -> Any:
    for key in path:
        value = value[key]
    return value


POOL: dict[Any, list] = {}
"""Name of a key -> what it is in any recipe of the project."""
for _recipe in SHIPPED.values():
    for _path in places(_recipe):
        POOL.setdefault(_path[-1], []).append(at(_recipe, _path))


def mutated(recipe: dict, rng: random.Random) -> None:
    """Changes something in a recipe, in place."""
    *above, last = rng.choice(list(places(recipe)))
    parent, pool = at(recipe, tuple(above)), POOL.get(last, [None])
    numbers = [path for path in places(recipe) if type(at(recipe, path)) in (int, float)]
    match rng.choice(("replace", "number", "number", "pool", "plan", "delete", "rename", "add", "double", "scale")):
        case "number" if numbers:
            *above, last = rng.choice(numbers)
            at(recipe, tuple(above))[last] = rng.choice(NUMBERS)
        case "replace":
            parent[last] = rng.choice(VALUES)
        case "pool":
            parent[last] = copy.deepcopy(rng.choice(pool))
        case "plan":
            whole = [path for path in places(recipe) if path[-1] in ("plan", "start")]
            *above, last = rng.choice(whole or [("plan",)])
            at(recipe, tuple(above))[last] = copy.deepcopy(rng.choice(PLANS))
        case "delete":
            del parent[last]
        case "rename" if isinstance(parent, dict):
            parent[rng.choice((*NAMES, str(last)[:-1], f"{last}s", str(last).upper()))] = parent.pop(last)
        case "add" if isinstance(parent, dict):
            parent[rng.choice(NAMES)] = rng.choice(VALUES)
        case "double" if isinstance(parent, list):
            parent += copy.deepcopy(parent) * rng.choice((1, 1, 50))
        case "scale" if isinstance(parent[last], int | float) and not isinstance(parent[last], bool):
            parent[last] *= rng.choice((-1, 0, 0.1, 10, 10**6, 10**18))


def cases(count: int) -> Iterator[Case]:
    names = list(SHIPPED)
    for number in range(count):
        rng = random.Random(f"recipe {number}")
        base = names[number % len(names)]
        recipe, overrides = copy.deepcopy(SHIPPED[base]), []
        if recipe["task"] == "instruct":
            recipe["model"] |= {"path": TINY}
        elif "model" in recipe:  # so that a dry run takes no time, and its configs are looked at elsewhere
            recipe["model"] |= {"path": TINY, "config": None, "dtype": "float32"}
            recipe["training"]["deepspeed"] = rng.choice((None, "recipes/deepspeed/zero3.json"))
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
            if rng.random() < 0.2:
                path = ".".join(map(str, rng.choice(list(places(recipe)))))
                value = rng.choice((*VALUES, *(text for text in TEXTS if len(text) < 200)))
                written = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True)
                overrides.append(
                    f"{rng.choice((path, path + '.x', path + '.' + '9' * 5_000, 'a.' * 500 + 'b', ''))}={written}"
                )
            elif recipe:
                mutated(recipe, rng)
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=rng.random() < 0.5)
        match rng.randrange(8):
            case 0:
                lines = text.splitlines(keepends=True)
                place = rng.randrange(len(lines) + 1)
                text = "".join([*lines[:place], rng.choice(TEXTS), *lines[place:]])
            case 1:
                lines = text.splitlines(keepends=True)
                place = rng.randrange(len(lines))
                text = "".join([*lines[: place + 1], *lines[place:]])  # a line stands twice
            case 2 if rng.random() < 0.5:
                text = text[: rng.randrange(len(text))]
            case 3 if rng.random() < 0.3:
                text = text.replace(rng.choice(("null", "0", ":", "  ")), rng.choice((DEEP, "", "\t", "- ")))
        yield Case(number, base, text, tuple(overrides))


def check(case: Case, folder: Path) -> str | None:
    """The line by which a recipe is refused; None if it means something."""
    path = folder / "recipe.yaml"
    path.write_bytes(case.text.encode(errors="surrogateescape"))
    found: list = []

    def read():
        found.append(load_recipe(str(path), case.overrides))

    def begin():
        (recipe,) = found
        if isinstance(recipe, StudentRecipe):
            refuse_missing_trackers(recipe.training.report_to)
            check_starting_point(recipe, recipe.model.config)
        dry_runs.dry_run(recipe, ASSUMED)

    try:
        with alarm(), nothing_done():
            line = refused(read) or refused(begin)
        if line is None:
            check_meaning(case, found[0].model_dump())
    except BaseException as error:
        raise AssertionError(f"{case}: {type(error).__name__}: {str(error)[:500]}") from error
    return line


def check_meaning(case: Case, settings: dict) -> None:
    """Fails for what must not have been accepted."""
    for path in places(settings):
        value, name = at(settings, path), str(path[-1])
        assert not isinstance(value, float) or math.isfinite(value), path
        assert not isinstance(value, int) or abs(value) < 2**63, path
        if name == "seed":
            assert value is None or 0 <= value < 2**32, path
        elif name == "seeds":
            assert value and len(set(value)) == len(value) and all(0 <= seed < 2**32 for seed in value), path
        elif name == "budgets" and value is not None:
            assert value and len({f"{budget:g}" for budget in value}) == len(value), path
        elif name == "name":
            assert 0 < len(value) <= 100 and "/" not in value and value not in (".", ".."), path
        elif name == "splits":
            assert all("/" not in split and ".." not in split.split("/") for split in value), path
        elif name == "planner" and value == "file":
            assert Path(at(settings, path[:-1])["path"]).is_file(), path
        elif name == "deepspeed" and value is not None:
            assert "zero" in Path(value).name, path
    if not case.overrides:
        written = yaml.compose(case.text)
        assert not is_twice(written), "a key stands twice"
        if "&" not in case.text:
            refuse_booleans(yaml.safe_load(case.text), settings)


def is_twice(node: yaml.Node) -> bool:
    """Whether a key stands twice in a mapping of a text."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        return len(set(keys)) < len(keys) or any(is_twice(child) for _, child in node.value)
    return isinstance(node, yaml.SequenceNode) and any(map(is_twice, node.value))


def refuse_booleans(written: Any, read: Any) -> None:
    """Fails where a boolean of a text was read as a number."""
    if isinstance(written, bool):
        assert isinstance(read, bool), (written, read)
    elif isinstance(written, dict):
        for key, value in written.items():
            refuse_booleans(value, read[key])
    elif isinstance(written, list):
        for value, other in zip(written, read, strict=True):
            refuse_booleans(value, other)


ASSUMED = Assumptions(processes=(2,))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for recipes, from within the checkout. Models are built once, and what a dry run prints is not shown."""
    monkeypatch.chdir(RECIPES.parent)
    monkeypatch.setattr(dry_runs, "console", Console(file=io.StringIO(), width=200))
    known: dict[str, Any] = {}
    monkeypatch.setattr(
        dry_runs,
        "build_on_meta",
        lambda lora, config: known.get(str(lora)) or known.setdefault(str(lora), build_on_meta(lora, config)),
    )
    return tmp_path


PARTS = 16


@pytest.mark.fuzz
@pytest.mark.parametrize("part", range(PARTS))
def test_recipes(folder, part):
    lines = [check(case, folder) for case in cases(CASES) if case.number // len(SHIPPED) % PARTS == part]
    accepted = sum(line is None for line in lines)
    assert len(lines) / 20 < accepted < len(lines) * 9 / 10, "some mean something and some do not"


def test_a_sample_of_recipes(folder):
    assert {check(case, folder) is None for case in cases(len(SHIPPED))} == {True, False}
