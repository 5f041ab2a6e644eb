"""The `data` section of a recipe."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from data.shapes.world import WorldSettings
from training.schema import Strict


class SourceSettings(Strict):
    """Samples from a LLaVA JSON (`path` and `images`), or from a split of `data.world`."""

    path: Path | None = None
    images: Path | None = None
    """Folder that the image paths in the JSON are relative to; images outside it are refused."""
    split: str | None = None
    weight: float | None = Field(default=None, gt=0)
    """How often each sample is used; 0.5 is a random half."""
    num_samples: int | None = Field(default=None, gt=0)
    """Random samples used, instead of a weight."""

    @model_validator(mode="after")
    def _one_origin(self):
        if (self.path is None) == (self.split is None):
            raise ValueError("give either path (a LLaVA JSON) or split (of data.world)")
        if (self.path is None) != (self.images is None):
            raise ValueError("images goes with path: the folder of the JSON's images")
        if self.weight is not None and self.num_samples is not None:
            raise ValueError("give weight or num_samples, not both")
        return self


class DataSettings(Strict):
    """What is trained, calibrated and evaluated on."""

    world: WorldSettings | None = None
    """The embedded world, for sources that name one of its splits."""
    train: tuple[SourceSettings, ...] = Field(min_length=1)
    calibration: tuple[SourceSettings, ...] = Field(min_length=1)
    """Held apart from evaluation: the plan is searched on it."""
    evaluation: tuple[SourceSettings, ...] = Field(min_length=1)
    """Rows carry the `family` they are scored by."""
    max_length: int = Field(gt=0)
    """Tokens, visual ones included; longer samples are left out and counted, never cut."""
    on_bad_sample: Literal["error", "skip"] = "error"
    max_bad_share: float = Field(default=0.0, ge=0, le=1)
    """Under `skip`: the largest share of bad samples that is still accepted."""

    @model_validator(mode="after")
    def _splits_exist(self):
        known = self.world.splits if self.world else {}
        for source in (*self.train, *self.calibration, *self.evaluation):
            if source.split is not None and source.split not in known:
                raise ValueError(
                    f"split {source.split!r} is not one of data.world ({', '.join(known) or 'which is not given'})"
                )
        return self
