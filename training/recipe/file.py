"""Recipes as files: found, read, overridden (`key.sub=value`, before anything is checked), and checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from modeling.user_error import UserError
from training.recipe.errors import describe
from training.recipe.recipe import Recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe.

    Args:
        name_or_path: a YAML file, or the name (with or without .yaml) of one in recipes/.
        overrides: `key.sub=value`; the value is YAML; list items are named by index (`compare.0.name=x`).
    Raises: UserError with one line: the recipe, the path inside it, what was found, what is allowed.
    """
    path = find_recipe(name_or_path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
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
    """The recipe's file. A path that exists wins over a name in recipes/."""
    candidates = [Path(name_or_path), RECIPES / name_or_path, RECIPES / f"{name_or_path}.yaml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    available = ", ".join(sorted(path.name for path in RECIPES.glob("*.yaml")))
    raise UserError(f"no recipe {name_or_path!r}: neither a file nor one of recipes/ ({available})")


def apply_override(content: dict, override: str) -> None:
    """Sets `key.sub=value` in what was read from YAML. Raises UserError where it has no such place."""
    key, separator, text = override.partition("=")
    if not (separator and key):
        raise UserError(f"override {override!r}: expected key.sub=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: the value is not valid YAML: {error}") from error
    *parents, last = key.split(".")
    section: Any = content
    for part in parents:
        # An absent or empty section is opened here; whether it may exist is the schema's business.
        if isinstance(section, dict) and section.get(part) is None:
            section[part] = {}
        section = section[_index(section, part, override)]
    section[_index(section, last, override)] = value


def _index(section: Any, part: str, override: str) -> str | int:
    """`part` as a key of a mapping or a position in a list."""
    if isinstance(section, dict):
        return part
    if isinstance(section, list):
        if part.isdecimal() and int(part) < len(section):
            return int(part)
        raise UserError(
            f"override {override!r}: {part!r} is not a position in a list of {len(section)} (0 is the first)"
        )
    raise UserError(f"override {override!r}: {part!r} lies inside {section!r}, which has no keys")
