"""What every recipe has."""

from data.sources.settings import Name, Seed
from training.schema import Strict


class BaseRecipe(Strict):
    """The keys that every recipe has."""

    name: Name
    """Name of the run. Its folder is runs/<name>."""
    seed: Seed
    """Seed of everything random: initial weights, the choice and order of samples, dropout and gates."""

    def global_batches(self, processes: int) -> dict[str, int]:
        """Returns the number of samples in an optimizer step, by the section that trains."""
        return {}
