"""What the world "pasted things" is made with: how many scenes of each split, and what a picture looks like."""

from pydantic import Field, model_validator

from data.pasted.scenes import Axis
from data.sources.settings import Name, Seed, Settings


class PictureSettings(Settings):
    """What the pictures of all splits look like."""

    size: int = Field(default=168, ge=96, le=1_024)
    """Width and height of a picture in pixels."""
    min_things: int = Field(default=2, ge=2, le=6)
    """Fewest things in a picture."""
    max_things: int = Field(default=6, ge=2, le=6)
    """Most things in a picture."""
    smallest: int = Field(default=40, ge=16, le=512)
    """Least longer side of a thing in pixels."""
    largest: int = Field(default=90, ge=16, le=512)
    """Greatest longer side of a thing in pixels."""
    letters: tuple[int, int] = (24, 32)
    """Least and greatest height of a sign's capitals in pixels."""
    signs: float = Field(default=0.25, ge=0, le=1)
    """Share of the pictures with a sign."""
    charts: float = Field(default=0.12, ge=0, le=1)
    """Share of the pictures that are bar charts."""

    @model_validator(mode="after")
    def _check(self) -> "PictureSettings":
        if self.min_things > self.max_things:
            raise ValueError(f"min_things {self.min_things} is above max_things {self.max_things}")
        if not self.smallest <= min(self.largest, 0.3 * self.size) or self.largest > 0.6 * self.size:
            raise ValueError(
                f"smallest {self.smallest} and largest {self.largest}: allowed: at most 0.3 and 0.6 of a picture's "
                f"{self.size}, the first no more than the second"
            )
        if not 8 <= self.letters[0] <= self.letters[1] <= self.size / 5:
            raise ValueError(f"letters {self.letters}: allowed: 8 to a fifth of {self.size}, the least first")
        return self


class SplitSettings(Settings):
    """One split of the world: one parquet file."""

    scenes: int = Field(ge=1, le=1_000_000)
    """Number of pictures."""
    axis: Axis = "none"
    """What is never trained, and is in each of these pictures."""
    apart: bool = False
    """Each question has a row of its own, with its family. false: a row has a picture and all its questions."""
    questions: int = Field(default=12, ge=1, le=40)
    """The most questions about a picture that stand in one row. Apart, each family asks what it can."""


class WorldSettings(Settings):
    """The world "pasted things" as it is written to disk."""

    seed: Seed = 0
    """Seed of pictures and questions. The same seed and the same packages give the same files, byte for byte."""
    picture: PictureSettings = PictureSettings()
    """What pictures look like."""
    splits: dict[Name, SplitSettings] = Field(
        default={
            "train": SplitSettings(scenes=20_000),
            "calibration": SplitSettings(scenes=1_000),
            "validation": SplitSettings(scenes=200, apart=True),
            "test_scenes": SplitSettings(scenes=300, apart=True),
            "test_backgrounds": SplitSettings(scenes=300, axis="backgrounds", apart=True),
            "test_style": SplitSettings(scenes=300, axis="style", apart=True),
            "test_combinations": SplitSettings(scenes=300, axis="combinations", apart=True),
        },
        min_length=1,
        max_length=100,
    )
    """Name of each split -> what is in it. The parquet file has the name of the split."""
