"""Describes a mistake in a recipe in one line: the path of the key, what was found, and what is allowed."""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

MOST_SHOWN = 120
"""Characters of a value that are shown, so that what is said of it finds room beside it."""


def describe(error: ValidationError, schema: Any) -> str:
    """Returns the first mistake that a validation found, in one line, and how many more there are.

    Args:
        error: what pydantic raised.
        schema: what it validated against, a model or a union of models.
    """
    findings = error.errors(include_url=False)
    # A misspelt key is found twice, as unknown and as missing. The unknown key tells the user more.
    findings.sort(key=lambda finding: finding["type"] != "extra_forbidden")
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return _describe_one(findings[0], schema) + more


def _describe_one(finding: dict, schema: Any) -> str:
    kind, location = finding["type"], finding["loc"]
    if kind == "extra_forbidden":
        path, sections = _walk(schema, location[:-1])
        keys = sorted({key for section in sections for key in section.model_fields})
        near = get_close_matches(str(location[-1]), keys, n=1)
        hint = f", did you mean {_dotted(path, near[0])}?" if near else ""
        return f"unknown key {_dotted(path, location[-1]):.{MOST_SHOWN}}{hint}; allowed: {', '.join(keys)}"
    path, _ = _walk(schema, location)
    where = _dotted(path) or "the recipe"
    if kind == "missing":
        return f"{where} is missing"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        where = _dotted(path, finding["ctx"]["discriminator"].strip("'"))
        if kind == "union_tag_not_found":
            return f"{where} is missing"
        return f"{where}: got {finding['ctx']['tag']!r:.{MOST_SHOWN}}; allowed: {finding['ctx']['expected_tags']}"
    message = finding["msg"].removeprefix("Value error, ")
    if isinstance(finding["input"], dict | list):  # from a check over several keys, whose message names them
        return f"{where}: {message}"
    return f"{where:.{MOST_SHOWN}}: got {finding['input']!r:.{MOST_SHOWN}}; {message[0].lower()}{message[1:]}"


def _dotted(path: tuple, *more: Any) -> str:
    return ".".join(str(key) for key in (*path, *more))


def _walk(schema: Any, location: tuple) -> tuple[tuple, list[type[BaseModel]]]:
    """Follows the location that pydantic gives to a mistake.

    Returns:
        The location without the tags of unions, and the sections that it may mean.
    """
    path: tuple = ()
    sections = list(_sections(schema))
    for key in location:
        fields = [section.model_fields[key].annotation for section in sections if key in section.model_fields]
        # In a union, pydantic names the member by its tag. Elsewhere the same word is a key of a container.
        tagged = [section for section in sections if len(sections) > 1 and _has_tag(section, key)]
        if fields:
            sections = [found for annotation in fields for found in _sections(annotation)]
        elif tagged:
            sections = tagged
            continue
        path += (key,)
    return path, sections


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yields the settings classes in an annotation. It looks into Annotated, unions, lists, tuples and dicts."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not Literal:
        for argument in get_args(annotation):
            yield from _sections(argument)


def _has_tag(section: type[BaseModel], tag: str | int) -> bool:
    annotations = [field.annotation for field in section.model_fields.values()]
    return any(get_origin(annotation) is Literal and tag in get_args(annotation) for annotation in annotations)
