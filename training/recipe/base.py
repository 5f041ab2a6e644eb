"""What every recipe has."""

from pathlib import Path

from data.sources.settings import Name, Seed
from training.schema import Strict


class BaseRecipe(Strict):
    """The keys that every recipe has."""

    name: Name
    """Name of the run. Its folder is runs/<name>."""
    seed: Seed
    """Seed of everything random: initial weights, the choice and order of samples, dropout and gates."""

    @property
    def folder(self) -> Path:
        """The run's folder, from the working directory."""
        return Path("runs") / self.name

    def global_batches(self, processes: int) -> dict[str, int]:
        """Returns the number of samples in an optimizer step, by the section that trains."""
        return {}
