"""The `data` section of a recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from data.benchmarks.names import BenchmarkName
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
    hub: Annotated[str | None, MayChange.WITH_EQUAL_CONTENT] = _as_in_source("hub")
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


class BenchmarkSettings(Strict):
    """Public benchmarks whose files are there. docs/benchmarks.md says which files, and what is reported."""

    benchmarks: tuple[BenchmarkName, ...] = Field(min_length=1)
    """Names of the benchmarks."""
    path: Annotated[Path | None, MayChange.ALWAYS] = None
    """Folder with a folder for each benchmark, such as LLaVA's `playground/data/eval` or a copy of data sets on the
    Hub."""
    hub: Annotated[str | None, MayChange.ALWAYS] = None
    """Owner of the benchmarks' data sets on the Hub, `owner[@revision]`, such as `lmms-lab`. Without a network they are
    read from the cache."""
    prompts: Literal["llava", "lmms"] = "llava"
    """Whose prompts are asked: those of LLaVA-1.5's own evaluation, or those of lmms-eval."""
    num_questions: int | None = Field(default=None, ge=1)
    """Ask the first questions of each benchmark alone, at least so many. Questions that are scored together stay
    together. null: all."""

    @model_validator(mode="after")
    def _check(self):
        if (self.path is None) == (self.hub is None):
            raise ValueError("give path (a folder) or hub (an owner on the Hub), one of the two")
        if len(set(self.benchmarks)) < len(self.benchmarks):
            raise ValueError(f"benchmarks: one is named twice, got {', '.join(self.benchmarks)}")
        return self


def _kind(given: Any) -> str:
    """Returns whether something in `data.evaluation` is a source of rows or names benchmarks."""
    names = given if isinstance(given, dict) else vars(given) if hasattr(given, "__dict__") else ()
    return "benchmarks" if "benchmarks" in names else "rows"


class DataSettings(Strict):
    """The data that students are trained on, plans are found on, and models are evaluated on."""

    world: WorldSettings | None = None
    """The embedded world, for sources that name one of its splits. null: no source may name a split."""
    train: tuple[SourceSettings, ...] = Field(min_length=1)
    """Sources of the samples that students are trained on."""
    calibration: tuple[SourceSettings, ...] = Field(min_length=1)
    """Sources of the samples that plans are found on. Keep them apart from those of `evaluation`."""
    evaluation: tuple[
        Annotated[
            Annotated[SourceSettings, Tag("rows")] | Annotated[BenchmarkSettings, Tag("benchmarks")],
            Discriminator(_kind),
        ],
        ...,
    ] = Field(min_length=1)
    """The questions that all models are asked in the end: public benchmarks, and sources of rows. Each such row has a
    `family`, which says how its answer is scored."""
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

    @property
    def benchmarks(self) -> tuple[BenchmarkSettings, ...]:
        """The benchmarks of `evaluation`."""
        return tuple(entry for entry in self.evaluation if isinstance(entry, BenchmarkSettings))

    @property
    def rows_to_ask(self) -> tuple[SourceSettings, ...]:
        """The sources of rows of `evaluation`."""
        return tuple(entry for entry in self.evaluation if isinstance(entry, SourceSettings))

    @property
    def is_streamed(self) -> bool:
        """Whether the training data are read as a stream."""
        return any(source.streaming for source in self.train)

    @model_validator(mode="after")
    def _only_training_is_streamed(self):
        if any(source.streaming for source in (*self.calibration, *self.rows_to_ask)):
            raise ValueError("streaming: allowed in data.train alone; the other data are read several times")
        if self.is_streamed and not all(source.streaming for source in self.train):
            raise ValueError("streaming: either all sources of data.train are streamed or none is")
        return self

    @model_validator(mode="after")
    def _each_benchmark_once(self):
        names = [name for entry in self.benchmarks for name in entry.benchmarks]
        names += ["shapes"] if self.rows_to_ask else []  # rows are scored and reported as these are
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"evaluation: {name} is asked twice; name it once, and rows only where shapes is not")
        return self

    @model_validator(mode="after")
    def _splits_exist(self):
        known = self.world.splits if self.world else {}
        for source in (*self.train, *self.calibration, *self.rows_to_ask):
            if source.is_of_world and source.split not in known:
                raise ValueError(
                    f"split {source.split!r} is not one of data.world ({', '.join(known) or 'which is not given'})"
                )
        return self
