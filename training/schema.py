"""The base class of every section of a recipe."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A section of a recipe. Unknown keys are refused, and values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)
