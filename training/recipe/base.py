"""What every recipe has."""

from pydantic import Field

from training.schema import Strict

NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"
"""Pattern of a name that is also the name of a file or folder."""


class BaseRecipe(Strict):
    """The keys that every recipe has."""

    name: str = Field(pattern=NAME)
    """Name of the run. Its folder is runs/<name>."""
    seed: int = Field(ge=0)
    """Seed of everything random: initial weights, the choice and order of samples, dropout and gates."""

    def global_batches(self, processes: int) -> dict[str, int]:
        """Returns the number of samples in an optimizer step, by the section that trains."""
        return {}
