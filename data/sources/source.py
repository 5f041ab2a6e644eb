"""Where samples come from: what a user says of a source."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from data.sources.settings import Settings

Value = str | int | float | bool
Column = Literal[
    "conversations",
    "messages",
    "texts",
    "prompt",
    "completion",
    "image",
    "images",
    "video",
    "videos",
    "id",
    "family",
    "system",
]


class Source(Settings):
    """A source of samples: files (`path`) or a data set on the Hub (`hub`), and how their rows are read."""

    path: Path | None = None
    """A file, several files by a pattern such as `data/*.parquet`, or a folder. Files are JSON lists (`.json`), JSON
    lines (`.jsonl`), both also compressed (`.gz`), `.parquet`, `.arrow`, or webdataset shards (`.tar`). A folder was
    written by `save_to_disk`, or is laid out as a data set on the Hub."""
    hub: str | None = None
    """A data set on the Hub, `owner/name[:config][@revision]`. Without a network it is read from the cache."""
    images: Path | None = None
    """Folder that the paths of pictures and videos start from. Files outside it are refused. null: they are embedded in
    the rows, or there are none."""
    split: str | None = None
    """Split of the data set. null: `train`."""
    columns: dict[Column, str] = Field(default={})
    """Our name of a column -> its name in the source, where they differ, such as `{messages: dialogue}`."""
    schema_name: Literal["llava", "messages", "texts", "prompt"] | None = None
    """Schema of the rows, one of those of data/sources/schemas.py. null: the columns tell it."""
    where: dict[str, Value | tuple[Value, ...]] = Field(default={})
    """Name of a column in the source -> the value, or the values, that it must have. Other rows are left out."""
    min_ratings: dict[str, float] = Field(default={})
    """Name of a column of ratings, one for each turn -> the least one. Turns below it are left out, as are turns
    without a rating. A row that has no turn left is left out too."""
    streaming: bool = False
    """Read the rows while they are trained on, and copy nothing to the disk. Nothing is known of them beforehand, so
    this goes with `data.train` alone, and with settings that ask for nothing beforehand. Then `weight` says how often
    the source gives a row, in proportion to the other sources."""
    weight: float | None = Field(default=None, gt=0)
    """How often each sample is used: 2 is twice, 0.5 is a random half. null: once, unless `num_samples` is given."""
    num_samples: int | None = Field(default=None, gt=0)
    """Number of samples, drawn at random. null: `weight` says how many."""

    @model_validator(mode="after")
    def _check(self) -> "Source":
        self._check_origin()
        if self.streaming and self.num_samples is not None:
            raise ValueError("num_samples goes without streaming: training.max_steps says how many are read")
        if self.weight is not None and self.num_samples is not None:
            raise ValueError(f"give weight or num_samples, not both; got {self.weight} and {self.num_samples}")
        return self

    def _check_origin(self) -> None:
        """Raises ValueError unless the source is said once."""
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either path (files) or hub (a data set on the Hub)")

    def meaning(self) -> dict[str, Any]:
        """Returns the settings that change what a row means, as JSON holds them."""
        settings = self.model_dump(mode="json", include={"columns", "schema_name", "where", "min_ratings"})
        return {**settings, "images": None if self.images is None else str(self.images.resolve())}
