"""What every recipe has."""

from pydantic import Field

from training.schema import Strict

NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"


class BaseRecipe(Strict):
    """What every run has."""

    name: str = Field(pattern=NAME)
    """Names the run's folder, runs/<name>."""
    seed: int = Field(ge=0)
