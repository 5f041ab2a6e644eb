"""The embedded world on disk: pictures of coloured shapes with questions whose answers are known.

It is written once, as PNG files and LLaVA JSON, and read back by the loader that reads any other LLaVA JSON. The scenes
come from data/shapes/scenes.py, the questions from data/shapes/questions.py.
"""

import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from data.shapes.questions import QUESTION_FAMILIES, Turn, ask_conversation, ask_family
from data.shapes.scenes import Scene, draw_scene, sample_scene
from data.sources.settings import Name, Seed, Settings

WORLDS = Path(__file__).resolve().parents[1] / "cache"
"""Where worlds are kept between runs."""
_FIRST_ROWS = 32
"""Rows of each split by which worlds are told apart: several of each family of questions."""
_WORLD_VERSION = 2  # raised whenever the same settings would give other pictures or other questions


class SplitSettings(Settings):
    """One split of the world: one LLaVA JSON file with its pictures."""

    part: Literal["train", "validation", "calibration", "test"]
    """Part of all possible pictures that this split draws from. No picture belongs to two parts."""
    rows: int = Field(gt=0, le=10_000_000)
    """Number of rows. Every row has its own picture."""
    questions: int = Field(1, gt=0, le=1_000)
    """The most questions about the picture of each row. With 1, the families of questions take turns from row to
    row."""
    kinds: Literal["lookup", "all", "hard", "exam"] = "all"
    """Which questions a row of several asks. lookup: what is where. all: the families' questions too. hard: most often
    those that are learnt last. exam: hardly any but the families' questions, the harder ones more often."""
    min_things: int = Field(1, ge=1, le=4)
    """Fewest things in a picture."""
    max_things: int = Field(4, ge=2, le=4)
    """Most things in a picture."""

    @model_validator(mode="after")
    def _check_things(self) -> "SplitSettings":
        if self.min_things > self.max_things:
            raise ValueError(f"min_things {self.min_things} is above max_things {self.max_things}")
        return self


class WorldSettings(Settings):
    """The embedded world as it is written to disk, with one JSON file per split."""

    seed: Seed
    """Seed of pictures and questions. The same seed gives the same files, byte for byte."""
    splits: dict[Name, SplitSettings] = Field(min_length=1, max_length=100)
    """Name of each split -> what is in it. The JSON file has the name of the split."""


def write_world(cache: Path, settings: WorldSettings) -> dict[str, Path]:
    """Writes the world of `settings` below `cache`, unless it is there already.

    Args:
        cache: the folder that holds one folder per world. It is made if it is missing.
        settings: seed and splits.

    Returns:
        Name of each split: path of its LLaVA JSON. The image paths in it are relative to the JSON's folder.
    """
    fingerprint = hashlib.sha256(f"{_WORLD_VERSION} {settings.model_dump_json()}".encode()).hexdigest()[:12]
    directory = cache / f"shapes-{fingerprint}"
    if not directory.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".shapes-", dir=cache))
        try:
            for name, split in settings.splits.items():
                _write_split(temporary, name, split, settings.seed)
            temporary.chmod(0o755)
            try:
                temporary.rename(directory)
            except OSError:
                if not directory.is_dir():  # if it is there, another run has written the same world meanwhile
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return {name: directory / f"{name}.json" for name in settings.splits}


def digest_of_first_rows(settings: WorldSettings) -> str:
    """Returns a hash of the first rows of each split, with their pictures, as this version of the code makes them."""
    return _digest_of_first_rows(settings.model_dump_json())


@cache
def _digest_of_first_rows(settings_json: str) -> str:
    settings, digest = WorldSettings.model_validate_json(settings_json), hashlib.sha256(b"%d" % _WORLD_VERSION)
    for name, split in settings.splits.items():
        for scene, family, turns in islice(split_rows(name, split, settings.seed), _FIRST_ROWS):
            digest.update(f"{name} {family} {turns}".encode())
            digest.update(draw_scene(scene).tobytes())
    return digest.hexdigest()


def split_rows(name: str, split: SplitSettings, seed: int) -> Iterator[tuple[Scene, str | None, list[Turn]]]:
    """Yields scene, family and turns of each row of a split, the same ones at every call.

    The family is None where a row asks several questions.
    """
    for index in range(split.rows):
        rng = random.Random(f"{seed}/{name}/{index}")
        family = QUESTION_FAMILIES[index % len(QUESTION_FAMILIES)] if split.questions == 1 else None
        turns: list[Turn] = []
        while not turns:
            scene = sample_scene(rng, split.part, split.min_things, split.max_things)
            turns = (
                ask_family(scene, family, rng) if family else ask_conversation(scene, split.kinds, split.questions, rng)
            )
        yield scene, family, turns


def _write_split(directory: Path, name: str, split: SplitSettings, seed: int) -> None:
    (directory / "images" / name).mkdir(parents=True)
    rows = []
    for index, (scene, family, turns) in enumerate(split_rows(name, split, seed)):
        image = f"images/{name}/{index:06d}.png"
        row: dict[str, Any] = {"id": f"{name}-{index:06d}", "image": image}
        if family:
            row["family"] = family
        messages = [message for turn in turns for message in zip(("human", "gpt"), turn, strict=True)]
        row["conversations"] = [{"from": speaker, "value": text} for speaker, text in messages]
        row["conversations"][0]["value"] = "<image>\n" + row["conversations"][0]["value"]
        draw_scene(scene).save(directory / image, compress_level=1)
        rows.append(row)
    (directory / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
