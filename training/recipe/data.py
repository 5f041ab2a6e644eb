"""The `data` section of a recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data.shapes.world import WorldSettings
from data.sources.source import Source
from training.schema import MayChange, Strict


def _as_in_source(name: str) -> Any:
    """Returns a field of `Source` with its default and what is said of it, for an Annotated type that says more."""
    field = Source.model_fields[name]
    return Field(default=field.default, description=field.description)


class SourceSettings(Source):
    """One source of samples: files (`path`), a data set on the Hub (`hub`), or a split of the embedded world (`split`
    alone). docs/data.md has examples."""

    path: Annotated[Path | None, MayChange.WITH_EQUAL_CONTENT] = _as_in_source("path")
    images: Annotated[Path | None, MayChange.ALWAYS] = _as_in_source("images")
    split: str | None = None
    """Split of the data set (null: `train`). Where neither `path` nor `hub` is given, a split of `data.world`."""

    @property
    def is_of_world(self) -> bool:
        """Whether the source is a split of the embedded world."""
        return self.path is None and self.hub is None

    def _check_origin(self) -> None:
        if self.path is not None and self.hub is not None:
            raise ValueError("give path (files) or hub (a data set on the Hub), not both")
        if self.is_of_world and self.split is None:
            raise ValueError("give path (files), hub (a data set on the Hub) or split (of data.world)")

    def source(self, world: Mapping[str, Path]) -> Source:
        """Returns where the samples are.

        Args:
            world: name of each split of `data.world` -> its file.
        """
        settings = self.model_dump()
        if self.is_of_world:
            path = world[settings.pop("split")]
            settings |= {"path": path, "images": path.parent}
        return Source(**settings)


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
            if source.is_of_world and source.split not in known:
                raise ValueError(
                    f"split {source.split!r} is not one of data.world ({', '.join(known) or 'which is not given'})"
                )
        return self
