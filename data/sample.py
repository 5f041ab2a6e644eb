"""A conversation about pictures and videos, whatever its row looked like, and what is said of one that is not used."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

from modeling.user_error import UserError

OnBadSample = Literal["error", "skip"]
Medium = Literal["image", "video"]
MEDIA: tuple[Medium, ...] = ("image", "video")
"""What a sample may show. A medium's name is in that of its mark, its columns and its placeholder."""


def mark_of(medium: Medium) -> str:
    """Returns what stands in a question for the next file of a medium."""
    return f"<{medium}>"


@dataclass(frozen=True)
class EmbeddedFile:
    """A picture or a video that stands in its row, as a file's bytes, and not in a file of its own.

    Attributes:
        data: what such a file would hold.
        name: what messages call it.
    """

    data: bytes
    name: str

    def __str__(self) -> str:
        return self.name

    def open(self) -> BinaryIO:
        return io.BytesIO(self.data)


@dataclass(frozen=True)
class OpenedFile:
    """A picture or a video whose file is open already.

    Attributes:
        stream: its bytes, from their start.
        name: what messages call it.
    """

    stream: BinaryIO
    name: str

    def __str__(self) -> str:
        return self.name

    def open(self) -> BinaryIO:
        return self.stream


File: TypeAlias = Path | EmbeddedFile | OpenedFile
"""Where the bytes of a picture or a video are read."""


@dataclass(frozen=True)
class Sample:
    """A conversation about pictures and videos.

    Attributes:
        id: the id of its row, or the row's number.
        images: its pictures. Each `<image>` mark in a question stands for the next one.
        turns: (question, answer) pairs, in order.
        family: the family of questions that says how its answers are scored.
        system: what a system message before the first question says.
        videos: its videos. Each `<video>` mark in a question stands for the next one.
    """

    id: str
    images: tuple[Path | EmbeddedFile, ...]
    turns: tuple[tuple[str, str], ...]
    family: str | None = None
    system: str | None = None
    videos: tuple[Path | EmbeddedFile, ...] = ()

    def files(self, medium: Medium) -> tuple[Path | EmbeddedFile, ...]:
        """Returns what it shows of a medium."""
        return self.images if medium == "image" else self.videos


@dataclass(frozen=True)
class BadSample:
    """A sample that was left out.

    Attributes:
        id: its id, if it had one.
        index: its index in the list that it came from.
        reason: why it was left out.
    """

    id: str | None
    index: int
    reason: str


class SampleTooLong(UserError):
    """A sample has more tokens than the limit. It is left out whole, never cut."""


def check_bad_share(bad: list[BadSample], num_samples: int, max_bad_share: float) -> None:
    """Raises UserError where more than `max_bad_share` of `num_samples` are bad."""
    if len(bad) > max_bad_share * num_samples:
        raise UserError(
            f"{len(bad)} of {num_samples} samples are bad, at most a share of {max_bad_share} is allowed; "
            f"the first: {bad[0].reason}"
        )
