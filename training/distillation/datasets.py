"""A recipe's `data` section as datasets and batches."""

from collections.abc import Sequence
from typing import Literal

from torch.utils.data import Dataset
from transformers import ProcessorMixin

from data.collator import Collator, PictureInEveryBatch
from data.dataset import ConversationDataset
from data.mixture import build_mixture
from data.shapes.world import WORLDS, write_world
from data.sources.source import Source
from modeling.user_error import UserError
from training.distillation.monitoring.validation import Validation, hold_out
from training.distillation.teacher_answers import AnsweredDataset
from training.ranks import world_size
from training.recipe.data import SourceSettings
from training.recipe.student import StudentRecipe


def mixture(
    recipe: StudentRecipe, role: Literal["train", "calibration", "evaluation"], processor: ProcessorMixin
) -> ConversationDataset:
    """Returns the samples that the recipe names under `data.ROLE`. For `train`, they are those to train on.

    Raises:
        UserError: the data is bad, as in `data.mixture.build_mixture`, or too small to hold out samples of it.
    """
    return training_split(recipe, processor)[0] if role == "train" else _whole_mixture(recipe, role, processor)


def training_split(
    recipe: StudentRecipe, processor: ProcessorMixin
) -> tuple[ConversationDataset, ConversationDataset | None]:
    """Returns the samples to train on, and those that are held out of `data.train`; None if none are.

    Raises:
        UserError: as `mixture`.
    """
    dataset = _whole_mixture(recipe, "train", processor)
    if recipe.validation is None:
        return dataset, None
    return hold_out(dataset, recipe.validation.num_samples, recipe.seed)


def _whole_mixture(recipe: StudentRecipe, role: str, processor: ProcessorMixin) -> ConversationDataset:
    """Returns all samples that the recipe names under `data.ROLE`."""
    data = recipe.data
    return build_mixture(
        _sources(recipe, getattr(data, role)),
        processor,
        max_length=data.max_length,
        seed=recipe.seed,
        on_bad_sample=data.on_bad_sample,
        max_bad_share=data.max_bad_share,
    )


def calibration_batches(recipe: StudentRecipe, processor: ProcessorMixin) -> list[dict]:
    """Returns `calibration.num_samples` samples in batches.

    Raises:
        UserError: there are fewer samples, or the data is bad.
    """
    settings, dataset = recipe.calibration, mixture(recipe, "calibration", processor)
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


def _sources(recipe: StudentRecipe, settings: Sequence[SourceSettings]) -> list[Source]:
    """Returns the files to read. The embedded world is written first, unless it is there already."""
    world = write_world(WORLDS, recipe.data.world) if recipe.data.world else {}
    return [source.source(world) for source in settings]


def conversations_of(dataset: ConversationDataset | AnsweredDataset) -> ConversationDataset:
    """Returns the conversations of a dataset, which may hold the teacher's answers to them."""
    return dataset.conversations if isinstance(dataset, AnsweredDataset) else dataset


def training_collator(dataset: ConversationDataset | AnsweredDataset, processor: ProcessorMixin) -> Collator:
    """Returns what makes batches in training.

    With several processes, and with samples with and without pictures, every batch gets a picture (see
    `PictureInEveryBatch`). The added row is the shortest sample that has one.
    """
    collator = Collator(processor)
    conversations = conversations_of(dataset)
    with_picture = [index for index, sample in enumerate(conversations.samples) if sample.images]
    if world_size() == 1 or len(with_picture) in (0, len(conversations)):
        return collator
    return PictureInEveryBatch(collator, dataset[min(with_picture, key=conversations.lengths.__getitem__)])


def validation_of(
    recipe: StudentRecipe, held_out: ConversationDataset | None, processor: ProcessorMixin
) -> Validation | None:
    """Returns what trainers look at meanwhile; None if no samples are held out."""
    if held_out is None:
        return None
    return Validation(held_out, training_collator(held_out, processor), recipe.validation.steps)
