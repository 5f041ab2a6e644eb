"""Finds and reads recipe files, applies overrides (`key.sub=value`), and checks the result."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from modeling.user_error import UserError
from training.recipe.errors import describe
from training.recipe.recipe import Recipe
from training.recipe.yaml_text import MOST_CHARACTERS, MOST_LEVELS, read_yaml

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe, applies the overrides and checks it.

    Args:
        name_or_path: path of a YAML file, or the name of a file in recipes/, with or without .yaml.
        overrides: texts `key.sub=value`. The value is YAML. An item of a list is named by its index, from 0 on
            (`compare.0.name=x`).

    Raises:
        UserError: the recipe has a mistake. The message is one line that names the file, the key, what was found and
            what is allowed.
    """
    path = find_recipe(name_or_path)
    try:
        with path.open(encoding="utf-8") as file:
            content = read_yaml(file.read(MOST_CHARACTERS + 1))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values, got {type(content).__name__}")
    for override in overrides:
        apply_override(content, override)
    try:
        return TypeAdapter(Recipe).validate_python(content)
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error, Recipe)}") from error


def find_recipe(name_or_path: str) -> Path:
    """Returns the recipe's file. A path that exists goes before a name in recipes/.

    Raises:
        UserError: there is no such file.
    """
    candidates = [Path(name_or_path), RECIPES / name_or_path, RECIPES / f"{name_or_path}.yaml"]
    for candidate in candidates:
        if os.path.isfile(candidate):  # also says so of what can be no file's name
            return candidate
    available = ", ".join(sorted(path.name for path in RECIPES.glob("*.yaml")))
    raise UserError(f"no recipe {name_or_path!r:.100}: neither a file nor one of recipes/ ({available})")


def apply_override(content: dict, override: str) -> None:
    """Applies an override to what was read from YAML.

    Args:
        content: is changed in place.
        override: a text `key.sub=value`, whose value is YAML.

    Raises:
        UserError: the text has another form, or `content` has no such place.
    """
    key, separator, text = override.partition("=")
    if not (separator and key):
        raise UserError(f"override {override!r:.150}: expected key.sub=value")
    try:
        value = read_yaml(text)
    except UserError as error:
        raise UserError(f"override {override!r:.150}: {error}") from error
    *parents, last = key.split(".")
    if len(parents) > MOST_LEVELS:
        raise UserError(f"override {override!r:.150}: more than {MOST_LEVELS} sections in each other")
    section: Any = content
    for name in parents:
        # A section that is absent or empty is made here. Whether it may exist is checked later, against the schema.
        if isinstance(section, dict) and section.get(name) is None:
            section[name] = {}
        section = section[_index(section, name, override)]
    section[_index(section, last, override)] = value


def _index(section: Any, name: str, override: str) -> str | int:
    """Returns `name` as a key of a mapping or as an index of a list. Raises UserError if there is no such index."""
    if isinstance(section, dict):
        return name
    if isinstance(section, list):
        if name in map(str, range(len(section))):
            return int(name)
        raise UserError(
            f"override {override!r:.150}: {name!r:.100} is not a position in a list of {len(section)} (0 is the first)"
        )
    raise UserError(f"override {override!r:.150}: {name!r:.100} lies inside {section!r:.100}, which has no keys")
