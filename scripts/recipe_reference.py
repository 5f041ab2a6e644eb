"""Prints docs/recipes.md, the reference of all that a recipe may say, made from the classes that read recipes.

python scripts/recipe_reference.py > docs/recipes.md
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from training import cli
from training.planners import PLANNERS
from training.recipe import Recipe
from training.recipe.gates import GateSettings
from training.recipe.race import RaceSettings
from training.schema import FROM_ANYWHERE, MayChange

HEAD = """# The fields of a recipe

This page is made by `python scripts/recipe_reference.py > docs/recipes.md`. Its words are those below the fields in
`training/recipe/`, `training/planners/`, `training/measure/budget.py`, `data/sources/source.py` and
`data/shapes/world.py`. Change them there.
A test in `tests/test_docs.py` holds this page to them.

A recipe is one YAML file. Its `task` decides which sections it has. An unknown key is refused at any depth, with the
nearest known one. Rules between fields, such as "either this or that", are said in the sections' first lines or by the
message that refuses the recipe. A field without a default must be given. A key stands once in its section, numbers are
finite, and `true` and `false` are no numbers. `key.sub=value` on the command line sets any field, `train.0` is the
first of a list `train`, and the value is YAML. `recipes/README.md` lists the recipes that come with the project.
"""
PLANS = """## Plans

Wherever a recipe asks for a plan, `planner` says how it is found. The other fields are that planner's. The `start` of
`gates` is any planner but `gates` and `race`. A part of a `stack` is any planner but `gates`, `race` and `stack`. A
candidate of a `race` is any planner but `race`.
"""
TASKS = get_args(get_args(Recipe)[0])
PLANNER_CLASSES = (*PLANNERS, GateSettings, RaceSettings)
NAMES = {int: "integer", float: "number", str: "text", bool: "`true` or `false`", Path: "path"}
BOUNDS = {
    "ge": "≥",
    "gt": ">",
    "le": "≤",
    "lt": "<",
    "min_length": "of at least",
    "max_length": "of at most",
    "multiple_of": "a multiple of",
}
BAR = "\\|"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sys.stdout.write(reference())


def reference() -> str:
    """Returns the text of docs/recipes.md."""
    parts = [HEAD, "## Tasks\n"]
    parts += [section(f"task: {value_of(task, 'task')}", task) for task in TASKS]
    parts.append("## Sections\n")
    for model, places in sections().items():
        parts.append(section("`, `".join(places), model, places[0] if len(places) == 1 else "…"))
    parts.append(PLANS)
    for planner in sorted(PLANNER_CLASSES, key=lambda planner: value_of(planner, "planner")):
        parts.append(section(value_of(planner, "planner"), planner, "plan"))
    return "\n".join(parts)


def value_of(model: type[BaseModel], name: str) -> str:
    """Returns the one value that a field of a class may have, by which a recipe chooses the class."""
    return get_args(model.model_fields[name].annotation)[0]


def section(title: str, model: type[BaseModel], place: str = "") -> str:
    """Returns a heading, what the class says of itself, and a table of its fields.

    Args:
        place: what stands before a field's name in a recipe.
    """
    module = sys.modules[model.__module__]
    says = [one_line(model.__doc__)]
    if model in PLANNERS:
        says.insert(0, one_line((module.__doc__ or "").split("\n\n")[0]))
    source = module.__name__.replace(".", "/")
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        meaning = re.sub(r"<(?=\w)", "&lt;", one_line(field.description))
        meaning = " ".join([meaning, *(mark.value for mark in field.metadata if isinstance(mark, MayChange))])
        cells = (f"`{f'{place}.{name}'.lstrip('.')}`", type_of(field), default_of(field), meaning)
        rows.append(f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |")
    return "\n".join([f"### `{title}`", "", *says, f"Read by `{source}.py`.", "", *rows, ""])


def one_line(text: str | None) -> str:
    """Returns a docstring without line breaks."""
    return " ".join((text or "").split())


def sections() -> dict[type[BaseModel], list[str]]:
    """Returns the sections below the tasks that are no planners, and where in a recipe each may stand."""
    found: dict[type[BaseModel], list[str]] = {}

    def collect(model: type[BaseModel], place: str) -> None:
        for name, field in model.model_fields.items():
            for child, suffix in models_in(field.annotation):
                path = f"{place}.{name}{suffix}".lstrip(".")
                if child in PLANNER_CLASSES:
                    continue
                if path not in (places := found.setdefault(child, [])):
                    places.append(path)
                    collect(child, path)

    for task in TASKS:
        collect(task, "")
    for planner in PLANNER_CLASSES:
        collect(planner, "plan")
    return found


def models_in(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    """Yields the classes of sections in a type. Each comes with what stands behind the field's name in its path."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, ""
    elif origin is Annotated:
        yield from models_in(arguments[0])
    elif origin in (dict, tuple):
        held, key = (arguments[1], "NAME") if origin is dict else (arguments[0], "N")
        yield from ((model, f".{key}{suffix}") for model, suffix in models_in(held))
    else:
        for argument in arguments:
            yield from models_in(argument)


def type_of(field: FieldInfo) -> str:
    """Returns the type of a field in words, with its bounds."""
    return in_words(field.annotation, field.metadata)


def in_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Returns a type in words. `metadata` holds its bounds, as pydantic keeps them."""
    models = [model for model, _ in models_in(annotation)]
    origin, arguments = get_origin(annotation), get_args(annotation)
    nullable = type(None) in arguments
    if origin is Annotated:
        bounds = [bound for extra in arguments[1:] for bound in getattr(extra, "metadata", [extra])]
        return in_words(arguments[0], bounds)
    if origin is Literal:
        words = ", ".join(f"`{value}`" for value in arguments)
    elif origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f" of {len(arguments)}"
        words = f"list{count}{bounds_of(metadata)}, each {in_words(arguments[0])}"
    elif origin is dict:
        words = f"mapping{bounds_of(metadata)}, from a name to {in_words(arguments[1])}"
    elif models and all(model in PLANNER_CLASSES for model in models):
        words = "a [plan](#plans)"
    elif models:
        words = "a section"
    elif origin in (Union, UnionType):
        words = " or ".join(in_words(argument, metadata) for argument in arguments if argument is not type(None))
    elif annotation in NAMES:
        words = f"{NAMES[annotation]}{bounds_of(metadata)}"
    else:
        raise TypeError(f"no words for {annotation}")
    return f"{words}, or null" if nullable else words


def bounds_of(metadata: Sequence[Any]) -> str:
    """Returns bounds in words, with a space before them."""
    words = []
    for bound in metadata:
        if isinstance(bound, MayChange) or bound is FROM_ANYWHERE:
            continue
        given = {name: getattr(bound, name, None) for name in BOUNDS}
        known = [f"{sign} {given[name]}" for name, sign in BOUNDS.items() if given[name] is not None]
        if getattr(bound, "pattern", None) is not None:
            known.append(f"that matches `{bound.pattern}`")
        if getattr(bound, "allow_inf_nan", None) is False:
            known.append("(finite)")
        if not known and not hasattr(bound, "discriminator"):
            raise TypeError(f"no words for {bound}")
        words += known
    return f" {' and '.join(words)}" if words else ""


def default_of(field: FieldInfo) -> str:
    """Returns a field's default as a recipe would write it."""
    if field.is_required():
        return "must be given"
    return f"`{json.dumps(field.default)}`"


if __name__ == "__main__":
    cli.run(main)
