"""The base of every section of a recipe: frozen, and closed to keys it does not know."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A recipe section. Unknown keys are refused at every depth; values do not change once read.

    The string below a field says what it means. docs/recipes.md is made of these strings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
