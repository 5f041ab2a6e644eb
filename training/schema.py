"""The base of every section of a recipe: frozen, and closed to keys it does not know."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A recipe section. Unknown keys are refused at every depth; values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)
