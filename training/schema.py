"""The base of every section of a recipe: frozen, closed to keys it does not know, and clear about what may change."""

from enum import Enum
from typing import Literal

from pydantic import BaseModel, ConfigDict

AUTO = "auto"
Precision = Literal["auto", "bfloat16", "float32"]
"""Data type that a training computes in. `auto` is one of the others: the machine decides when a run is begun."""


class Strict(BaseModel):
    """A recipe section. Unknown keys are refused at every depth; values do not change once read.

    The string below a field says what it means. docs/recipes.md is made of these strings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class MayChange(Enum):
    """Marks a field, in its Annotated type, that may have another value when a run is started again.

    A field without it decides results, and a run folder refuses another value. The text is that of docs/recipes.md.
    """

    ALWAYS = "It may change between two starts of a run."
    AT_EQUAL_GLOBAL_BATCH = "It may change between two starts of a run, if the global batch stays the same."
    WITH_EQUAL_CONTENT = "It may change between two starts of a run, if the content stays the same."
