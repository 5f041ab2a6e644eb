"""The fields of a recipe: which differ from those that a run was begun with, and which are left to the machine."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from training.schema import AUTO, MayChange

AnyRecipe = TypeVar("AnyRecipe", bound=BaseModel)
NOTHING = "nothing"
"""What a message calls the value of a field that only the other recipe has."""


@dataclass(frozen=True)
class Setting:
    """The value of a field, and whether it may change between two starts of a run."""

    value: Any
    """As JSON holds it."""
    may_change: MayChange | None


@dataclass(frozen=True)
class Change:
    """A field that has another value than before."""

    field: str
    before: Any
    now: Any
    may_change: MayChange | None

    def __str__(self) -> str:
        return f"{self.field}: got {_in_words(self.now)}, before {_in_words(self.before)}"


def settings(section: BaseModel, prefix: str = "") -> dict[str, Setting]:
    """Returns every field of a recipe, at any depth, by its dotted name."""
    found: dict[str, Setting] = {}
    dumped = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value, marks = getattr(section, name), (mark for mark in field.metadata if isinstance(mark, MayChange))
        held = list(_held(f"{prefix}{name}", value))
        if held:
            for path, child in held:
                found |= settings(child, f"{path}.")
        else:
            found[f"{prefix}{name}"] = Setting(dumped[name], next(marks, None))
    return found


def sections(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, BaseModel]]:
    """Yields every section below a recipe, at any depth, with its dotted name."""
    for name in type(section).model_fields:
        for path, child in _held(f"{prefix}{name}", getattr(section, name)):
            yield path, child
            yield from sections(child, f"{path}.")


def undecided(recipe: BaseModel) -> list[str]:
    """Returns the dotted names of the fields in which a precision is `auto`."""
    found = settings(recipe)
    return [field for field in found if field.rpartition(".")[2] == "precision" and found[field].value == AUTO]


def decided(recipe: AnyRecipe, precisions: Mapping[str, str]) -> AnyRecipe:
    """Returns a recipe with these precisions, by the dotted names of their fields."""
    content = recipe.model_dump(mode="json")
    for field, precision in precisions.items():
        *sections, name = field.split(".")
        section: Any = content
        for key in sections:
            section = section[int(key) if isinstance(section, list) else key]
        section[name] = precision
    return type(recipe).model_validate(content)


def changes(written: Any, recipe: BaseModel) -> list[Change]:
    """Returns the fields in which a recipe differs from a recipe.yaml.

    A recipe.yaml of an earlier version may lack fields. They then have their defaults.

    Args:
        written: the content of the recipe.yaml.
        recipe: the recipe.
    """
    now = settings(recipe)
    try:
        before = settings(type(recipe).model_validate(written))
    except ValidationError:  # it is one of another task, or this version knows other fields
        before = {name: Setting(value, None) for name, value in leaves(written)}
    nothing = Setting(NOTHING, None)
    found = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name, nothing), now.get(name, nothing)
        if old.value != new.value:
            found.append(Change(name, old.value, new.value, new.may_change or old.may_change))
    return found


def _held(path: str, value: Any) -> Iterator[tuple[str, BaseModel]]:
    """Yields the sections in a field's value, each with its path."""
    if isinstance(value, BaseModel):
        yield path, value
    elif isinstance(value, dict):
        yield from ((f"{path}.{key}", child) for key, child in value.items() if isinstance(child, BaseModel))
    elif isinstance(value, tuple):
        yield from ((f"{path}.{key}", child) for key, child in enumerate(value) if isinstance(child, BaseModel))


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields all values of what was read from YAML, as `settings` names them."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = dict(enumerate(value))
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from leaves(child, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _in_words(value: Any) -> str:
    return value if value is NOTHING else repr(value)
