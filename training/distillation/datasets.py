"""A recipe's `data` section as datasets and batches.

The sources are read once, by rank 0 in a run's first stage (`index_data`). All else reads their indexes.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from data.collator import AllMediaInEveryBatch, Collator
from data.dataset import ConversationDataset
from data.index.build import build_indexes
from data.index.index import open_indexes
from data.index.shown_files import CONTENT, first_changed, record
from data.left_out import LeftOut
from data.mixture import build_mixture
from data.shapes.world import WORLDS, write_world
from data.sources.source import Source
from data.streaming import StreamedDataset
from modeling.user_error import UserError
from training.distillation.monitoring.validation import Validation, hold_out
from training.distillation.teacher_answers import AnsweredDataset
from training.evaluation.questions import Asked, read_benchmarks
from training.files import read_json, reading, write_json, writing
from training.ranks import rank, world_size
from training.recipe.student import StudentRecipe

Role = Literal["train", "calibration", "evaluation"]
ROLES: tuple[Role, ...] = ("train", "calibration", "evaluation")
INDEXES = "indexes.json"
"""File that says which index each source of a recipe has."""
BENCHMARK_FILES = "benchmarks.files.parquet"
"""File that says what pictures and videos of benchmarks were."""
INDEX_AGAIN = "delete this folder and the result of `data` in stages/, and the data is read again"
"""What can be done about a damaged index."""


def index_data(recipe: StudentRecipe, processor: ProcessorMixin, folder: Path) -> None:
    """Reads, checks and encodes all rows of all sources that the recipe names, unless it was done before.

    Args:
        folder: where the indexes lie.

    Raises:
        UserError: a source cannot be read. Bad rows are an error of `mixture`.
    """
    sources = {role: [source for source in sources_of(recipe, role) if not source.streaming] for role in ROLES}
    with writing(folder):
        paths = build_indexes(
            list(chain.from_iterable(sources.values())), processor, folder, decode=recipe.data.on_bad_sample == "skip"
        )
    names = iter(path.name for path in paths)
    write_json(folder / INDEXES, {role: [next(names) for _ in sources[role]] for role in ROLES})


def record_benchmark_files(asked: Iterable[Asked], folder: Path) -> None:
    """Writes what is compared of all pictures and videos that questions of benchmarks name by their paths.

    The indexes have it of those that rows name.
    """
    record(_files_of_benchmarks(asked), folder / BENCHMARK_FILES)


def refuse_other_shown_files(recipe: StudentRecipe, folder: Path) -> None:
    """Raises UserError if a picture or a video has another content than when the data was read.

    Args:
        folder: where `index_data` has written the indexes, and `record_benchmark_files` its file.
    """
    for files, contents in _shown_files(recipe, folder):
        changed = first_changed(files, contents)
        if changed is not None:
            was = "has another content than" if changed.exists() else "is missing, and was there"
            raise UserError(
                f"{changed} {was} when this run read its data. Put it back, choose another name (name=...), or begin "
                "again with --restart"
            )


def _shown_files(recipe: StudentRecipe, folder: Path) -> Iterator[tuple[list[Path], pa.Table]]:
    """Yields the files that are shown and what their content was: of each index, and of the benchmarks."""
    names = read_json(folder / INDEXES)
    seen = set()
    for role in ROLES:
        sources = [source for source in sources_of(recipe, role) if not source.streaming]
        with reading(folder, INDEX_AGAIN):
            indexes = open_indexes(sources, [folder / name for name in names[role]])
        for index in indexes:
            if index.path not in seen:  # equal sources share one
                seen.add(index.path)
                rows = np.flatnonzero(index.is_good)
                with reading(folder, INDEX_AGAIN):
                    contents = index.contents(rows)
                yield list(index.files(rows)), contents
    asked = [part for settings in recipe.data.benchmarks for part in read_benchmarks(settings)]
    with reading(folder, INDEX_AGAIN):
        contents = pq.read_table(folder / BENCHMARK_FILES, schema=CONTENT.arrow_schema)
    yield _files_of_benchmarks(asked), contents


def _files_of_benchmarks(asked: Iterable[Asked]) -> list[Path]:
    questions = chain.from_iterable(part.questions for part in asked if part.place is not None)
    files = chain.from_iterable((*question.images, *question.videos) for question in questions)
    return [file for file in files if isinstance(file, Path)]


def mixture(recipe: StudentRecipe, role: Role, processor: ProcessorMixin, folder: Path) -> ConversationDataset:
    """Returns the samples that the recipe names under `data.ROLE`. For `train`, they are those to train on.

    Args:
        folder: where `index_data` has written the indexes.

    Raises:
        UserError: too much of the data is bad, as in `data.mixture.build_mixture`, or it is too small to hold out
            samples of it.
    """
    if role == "train":
        return training_split(recipe, processor, folder)[0]
    return whole_mixture(recipe, role, processor, folder)[0]


def training_split(
    recipe: StudentRecipe, processor: ProcessorMixin, folder: Path
) -> tuple[ConversationDataset, ConversationDataset | None]:
    """Returns the samples to train on, and those that are held out of `data.train`; None if none are.

    Raises:
        UserError: as `mixture`.
    """
    dataset, _ = whole_mixture(recipe, "train", processor, folder)
    if recipe.validation is None:
        return dataset, None
    return hold_out(dataset, recipe.validation.num_samples, recipe.seed)


def whole_mixture(
    recipe: StudentRecipe, role: Role, processor: ProcessorMixin, folder: Path
) -> tuple[ConversationDataset, LeftOut]:
    """Returns all samples that the recipe names under `data.ROLE`, and what is left out of them.

    Raises:
        UserError: as `data.mixture.build_mixture`. A question of the evaluation may not be too long.
    """
    with reading(folder, INDEX_AGAIN):
        paths = [folder / name for name in read_json(folder / INDEXES)[role]]
        indexes = open_indexes(sources_of(recipe, role), paths)
    return build_mixture(indexes, processor, **mixture_settings(recipe, role))


def mixture_settings(recipe: StudentRecipe, role: Role) -> dict[str, Any]:
    """Returns what the recipe says to `data.mixture.build_mixture` about `data.ROLE`."""
    data = recipe.data
    return {
        "max_length": data.max_length,
        "seed": recipe.seed,
        "on_bad_sample": data.on_bad_sample,
        "max_bad_share": data.max_bad_share,
        "max_too_long_share": 0.0 if role == "evaluation" else data.max_too_long_share,
    }


def calibration_batches(recipe: StudentRecipe, processor: ProcessorMixin, folder: Path) -> list[dict]:
    """Returns `calibration.num_samples` samples in batches.

    Raises:
        UserError: there are fewer samples, or the data is bad.
    """
    settings, dataset = recipe.calibration, mixture(recipe, "calibration", processor, folder)
    return in_batches(dataset, settings.num_samples, settings.batch_size, processor, "calibration.num_samples")


def in_batches(
    dataset: Dataset, num_samples: int, batch_size: int, processor: ProcessorMixin, setting: str
) -> list[dict]:
    """Returns the first samples of a dataset in batches. The last batch may be smaller.

    Args:
        setting: name of the setting that says how many samples, for the message of an error.

    Raises:
        UserError: the dataset has fewer samples.
    """
    if len(dataset) < num_samples:
        raise UserError(f"{setting}: got {num_samples}, there are {len(dataset)} usable samples")
    collator, starts = Collator(processor), range(0, num_samples, batch_size)
    return [
        collator([dataset[index] for index in range(start, min(start + batch_size, num_samples))]) for start in starts
    ]


def roles_with_rows(recipe: StudentRecipe) -> list[Role]:
    """Returns the roles whose rows are indexed. A stream is not, and benchmarks are no rows."""
    without = {"train": recipe.data.is_streamed, "evaluation": not recipe.data.rows_to_ask}
    return [role for role in ROLES if not without.get(role)]


def sources_of(recipe: StudentRecipe, role: Role) -> list[Source]:
    """Returns the sources of rows of `data.ROLE`. The embedded world is written first, unless it is there already."""
    world = write_world(WORLDS, recipe.data.world) if recipe.data.world else {}
    sources = recipe.data.rows_to_ask if role == "evaluation" else getattr(recipe.data, role)
    return [source.source(world) for source in sources]


def streamed(recipe: StudentRecipe, processor: ProcessorMixin) -> StreamedDataset:
    """Returns this process's part of the training data of a recipe that streams them.

    Raises:
        UserError: a source cannot be opened.
    """
    settings = mixture_settings(recipe, "train")
    return StreamedDataset(sources_of(recipe, "train"), processor, part=(rank(), world_size()), **settings)


def conversations_of(dataset: ConversationDataset | AnsweredDataset) -> ConversationDataset:
    """Returns the conversations of a dataset, which may hold the teacher's answers to them."""
    return dataset.conversations if isinstance(dataset, AnsweredDataset) else dataset


def training_collator(
    dataset: ConversationDataset | AnsweredDataset | StreamedDataset, processor: ProcessorMixin
) -> Collator:
    """Returns what makes batches in training.

    With several processes, and where some samples have pictures, or videos, and others do not, every batch gets some
    (see `AllMediaInEveryBatch`). An added row is the shortest sample that has some, or the first of a stream.
    """
    collator = Collator(processor)
    if isinstance(dataset, StreamedDataset):
        fillers = dataset.first_of_each_medium() if world_size() > 1 else []
        return AllMediaInEveryBatch(collator, fillers) if fillers else collator
    if world_size() == 1:
        return collator
    conversations, fillers = conversations_of(dataset), []
    for has_some in (conversations.has_picture, conversations.has_video):
        with_some = np.flatnonzero(has_some)
        if 0 < len(with_some) < len(conversations):
            fillers.append(dataset[int(with_some[conversations.lengths[with_some].argmin()])])
    return AllMediaInEveryBatch(collator, fillers) if fillers else collator


def validation_of(
    recipe: StudentRecipe, held_out: ConversationDataset | None, processor: ProcessorMixin
) -> Validation | None:
    """Returns what trainers look at meanwhile; None if no samples are held out."""
    if held_out is None:
        return None
    return Validation(held_out, training_collator(held_out, processor), recipe.validation.steps)
