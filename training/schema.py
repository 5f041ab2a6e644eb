"""The base of every section of a recipe: frozen, closed to keys it does not know, and clear about what may change.

Paths are relative to the working directory. One that is not there and begins with a folder of this checkout's own is
looked for in the checkout, so that recipes run from anywhere. The resolved recipe then has the whole path.
"""

import os
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from pydantic import BeforeValidator

from data.sources.settings import Settings

CHECKOUT = Path(__file__).resolve().parents[1]
SHIPPED = ("checkpoints", "recipes")
"""Folders of the checkout whose files recipes name."""

AUTO = "auto"
Precision = Literal["auto", "bfloat16", "float32"]
"""Data type that a training computes in. `auto` is one of the others: the machine decides when a run is begun."""


class Strict(Settings):
    """A recipe section. docs/recipes.md is made of the strings below its fields."""


class MayChange(Enum):
    """Marks a field, in its Annotated type, that may have another value when a run is started again.

    A field without it decides results, and a run folder refuses another value. The text is that of docs/recipes.md.
    """

    ALWAYS = "It may change between two starts of a run."
    AT_EQUAL_GLOBAL_BATCH = "It may change between two starts of a run, if the global batch stays the same."
    WITH_EQUAL_CONTENT = "It may change between two starts of a run, if the content stays the same."


def _from_anywhere(path: Any) -> Any:
    """Returns the path of a file that comes with the project, if there is no such file in the working directory."""
    if (
        not isinstance(path, str | Path)
        or os.path.exists(path)
        or Path(path).parts[:1] not in [(it,) for it in SHIPPED]
    ):
        return path
    return str(CHECKOUT / path) if os.path.exists(CHECKOUT / path) else path


FROM_ANYWHERE = BeforeValidator(_from_anywhere)
"""Marks a field, in its Annotated type, that names a file which is read and may be one of the project's own."""
