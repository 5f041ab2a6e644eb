"""A recipe: one YAML file that describes one complete run, checked before anything is loaded.

Each section's settings live beside the code they steer; this file only puts them together. Every section is closed: an
unknown key, at any depth, is an error that names the path and the nearest valid key. Paths are relative to the working
directory. `key.sub=value` overrides are applied to the YAML before it is checked.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from data.shapes import WorldSettings
from training.distillation import DistillationSettings
from training.schema import Strict
from training.teacher import TeacherSettings

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


class BaseRecipe(Strict):
    """What every run has."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")
    """Names the run's folder, runs/<name>."""
    seed: int = Field(ge=0)


class DenseRecipe(BaseRecipe):
    """Train a dense model from scratch on the embedded world."""

    task: Literal["dense"]
    teacher: TeacherSettings


class ModelSettings(Strict):
    """The dense model: teacher, and the student's starting point."""

    path: str
    """Folder, or name on the Hugging Face Hub."""
    config: str | None = None
    """JSON of the model's config, for --dry-run where the weights are not at hand."""
    dtype: Literal["float32", "bfloat16"]
    trust_remote_code: bool = False


class DataSettings(Strict):
    """Sources in LLaVA JSON. Where `world` is given, a source's path may also be the name of one of its splits."""

    world: WorldSettings | None = None
    train: list[Any] = Field(min_length=1)
    calibration: list[Any] = Field(min_length=1)
    evaluation: list[Any] = Field(min_length=1)
    max_length: int = Field(gt=0)
    """Tokens, visual ones included; longer samples are bad samples, never cut."""
    on_bad_sample: Literal["error", "skip"] = "error"
    max_bad_share: float = Field(default=0.0, ge=0, le=1)
    """Under `skip`: the largest share of bad samples that is still accepted."""


class CompareSettings(Strict):
    """One more row of the report's table: another plan, or the same one (`plan: null`), distilled or not."""

    name: str
    plan: dict | None = None
    distil: bool


class SparsifyRecipe(BaseRecipe):
    """Find a plan for a dense model, distil the student under it, export, evaluate, report."""

    task: Literal["sparsify"]
    model: ModelSettings
    data: DataSettings
    calibration: dict
    plan: dict
    lora: dict | None
    """None: every weight of the text decoder and the projector is trained, and the teacher is a second model."""
    distillation: DistillationSettings
    training: dict
    compare: list[CompareSettings] = []
    evaluation: dict


Recipe = Annotated[Union[DenseRecipe, SparsifyRecipe], Field(discriminator="task")]


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe.

    Args:
        name_or_path: a YAML file, or the name (with or without .yaml) of one in recipes/.
        overrides: `key.sub=value`; the value is YAML; list items are named by index (`compare.0.name=x`).
    Raises: ValueError with one line: the recipe, the path inside it, what was found, what is allowed.
    """
    path = find_recipe(name_or_path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a recipe is a mapping of keys to values, got {type(content).__name__}")
    for override in overrides:
        _apply_override(content, override)
    try:
        return TypeAdapter(Recipe).validate_python(content)
    except ValidationError as error:
        raise ValueError(f"{path}: {_describe(error)}") from error


def find_recipe(name_or_path: str) -> Path:
    """The recipe's file. A path that exists wins over a name in recipes/."""
    candidates = [Path(name_or_path), RECIPES / name_or_path, RECIPES / f"{name_or_path}.yaml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    available = ", ".join(sorted(path.name for path in RECIPES.glob("*.yaml")))
    raise ValueError(f"no recipe {name_or_path!r}: neither a file nor one of recipes/ ({available})")


def _apply_override(content: dict, override: str) -> None:
    key, separator, text = override.partition("=")
    if not (separator and key):
        raise ValueError(f"override {override!r}: expected key.sub=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"override {override!r}: the value is not valid YAML: {error}") from error
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
        raise ValueError(f"override {override!r}: {part!r} is not a position in a list of {len(section)} (0 is the first)")
    raise ValueError(f"override {override!r}: {part!r} lies inside {section!r}, which has no keys")


# ---- one line from pydantic's findings ----


def _describe(error: ValidationError) -> str:
    findings = error.errors(include_url=False)
    # A misspelt key is found twice, as unknown and as missing: the unknown one tells the user more.
    findings.sort(key=lambda finding: finding["type"] != "extra_forbidden")
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return _describe_one(findings[0]) + more


def _describe_one(finding: dict) -> str:
    location = finding["loc"]
    if finding["type"] == "extra_forbidden":
        path, sections = _walk(Recipe, location[:-1])
        allowed = sorted({key for section in sections for key, _ in _fields(section)})
        return f"unknown key {_dotted(path, location[-1])}{_nearest(str(location[-1]), path, allowed)}; allowed: {', '.join(allowed)}"
    path, _ = _walk(Recipe, location)
    where = _dotted(path) or "recipe"
    if finding["type"] == "missing":
        return f"{where} is missing"
    if finding["type"] in ("union_tag_invalid", "union_tag_not_found"):
        context = finding["ctx"]
        where = _dotted(path, context["discriminator"].strip("'"))
        if finding["type"] == "union_tag_not_found":
            return f"{where} is missing"
        allowed = [tag.strip("'") for tag in context["expected_tags"].split(", ")]
        return f"{where}: got {context['tag']!r}; allowed: {', '.join(allowed)}"
    message = finding["msg"].removeprefix("Value error, ")
    return f"{where}: got {finding['input']!r}; {message[0].lower()}{message[1:]}"


def _nearest(key: str, path: tuple, allowed: list[str]) -> str:
    close = get_close_matches(key, allowed, n=1)
    return f", did you mean {_dotted(path, close[0])}?" if close else ""


def _dotted(path: tuple, *more: Any) -> str:
    return ".".join(str(part) for part in (*path, *more))


def _walk(annotation: Any, location: tuple) -> tuple[tuple, list[type]]:
    """Follow pydantic's location; returns it without union tags, and the sections it may mean."""
    path: tuple = ()
    sections = list(_sections(annotation))
    for part in location:
        if isinstance(part, int):
            path += (part,)  # an item of a list: _sections has looked through the list
            continue
        tagged = [section for section in sections if _has_tag(section, part)]
        inside = [annotation for section in sections for key, annotation in _fields(section) if key == part]
        if tagged and not inside:
            sections = tagged
            continue
        path += (part,)
        sections = [found for annotation in inside for found in _sections(annotation)]
    return path, sections


def _sections(annotation: Any) -> Iterator[type]:
    """The settings classes in an annotation, through Annotated, unions, lists and tuples."""
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        yield annotation
    elif get_origin(annotation) is not Literal:
        for argument in get_args(annotation):
            yield from _sections(argument)


def _fields(section: type) -> list[tuple[str, Any]]:
    if issubclass(section, BaseModel):
        return [(name, field.annotation) for name, field in section.model_fields.items()]
    return [(field.name, field.type) for field in dataclass_fields(section)]


def _has_tag(section: type, tag: str) -> bool:
    return any(get_origin(annotation) is Literal and tag in get_args(annotation) for _, annotation in _fields(section))
