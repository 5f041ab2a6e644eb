"""The `data` section of a recipe."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from data.shapes.world import WorldSettings
from training.schema import MayChange, Strict


class SourceSettings(Strict):
    """One source of samples: a file of rows (`path` and `images`), or a split of the embedded world (`split`)."""

    path: Annotated[Path | None, MayChange.WITH_EQUAL_CONTENT] = None
    """A JSON list of rows, or JSON lines (`.jsonl`), in one of the schemas of data/schemas.py, which its columns tell.
    null: the source is `split`."""
    images: Annotated[Path | None, MayChange.ALWAYS] = None
    """Folder that the image paths in the file start from. Images outside it are refused. It is given with
    `path`."""
    split: str | None = None
    """Name of a split in `data.world`. null: the source is `path`."""
    weight: float | None = Field(default=None, gt=0)
    """How often each sample is used: 2 is twice, 0.5 is a random half. null: once, unless `num_samples` is given."""
    num_samples: int | None = Field(default=None, gt=0)
    """Number of samples, drawn at random. null: `weight` says how many."""

    @model_validator(mode="after")
    def _one_origin(self):
        if (self.path is None) == (self.split is None):
            raise ValueError("give either path (a JSON file) or split (of data.world)")
        if (self.path is None) != (self.images is None):
            raise ValueError("images goes with path: the folder of the JSON's images")
        if self.weight is not None and self.num_samples is not None:
            raise ValueError("give weight or num_samples, not both")
        return self


class DataSettings(Strict):
    """The data that students are trained on, plans are found on, and models are evaluated on."""

    world: WorldSettings | None = None
    """The embedded world, for sources that name one of its splits. null: no source may name a split."""
    train: tuple[SourceSettings, ...] = Field(min_length=1)
    """Sources of the samples that students are trained on."""
    calibration: tuple[SourceSettings, ...] = Field(min_length=1)
    """Sources of the samples that plans are found on. Keep them apart from those of `evaluation`."""
    evaluation: tuple[SourceSettings, ...] = Field(min_length=1)
    """Sources of the questions that all models are asked in the end. Each row has a `family`, which says how its answer
    is scored."""
    max_length: int = Field(gt=0)
    """Longest sample in tokens, visual tokens included. Longer samples are left out and counted. None is cut. One in
    `evaluation` is an error."""
    max_too_long_share: float = Field(default=0.05, ge=0, le=1)
    """Largest share of the samples of `train`, and of `calibration`, that may be longer than `max_length`. The run
    stops if there are more: what is trained on would then differ from the data in kind, not in a few long samples."""
    on_bad_sample: Literal["error", "skip"] = "error"
    """What happens to a sample that cannot be used: the run stops (error), or the sample is left out (skip)."""
    max_bad_share: float = Field(default=0.0, ge=0, le=1)
    """Largest share of samples that may be left out with `on_bad_sample: skip`. The run stops if there are more."""

    @model_validator(mode="after")
    def _splits_exist(self):
        known = self.world.splits if self.world else {}
        for source in (*self.train, *self.calibration, *self.evaluation):
            if source.split is not None and source.split not in known:
                raise ValueError(
                    f"split {source.split!r} is not one of data.world ({', '.join(known) or 'which is not given'})"
                )
        return self
