"""The metadata of a model card, which the Hub reads."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from yaml import YAMLError

from modeling.user_error import UserError


@dataclass(frozen=True)
class Licence:
    """A licence as the Hub names it."""

    id: str
    """Such as `apache-2.0`; `other` for one that the Hub does not know."""
    name: str | None = None
    """Its name, where `id` is `other`."""
    link: str | None = None
    """URL, or name of a file in the repository, of its text."""

    def __str__(self) -> str:
        return self.id if self.name is None else self.name


def metadata(
    name: str,
    family: str,
    *,
    base_model: str | None,
    licence: Licence | None,
    datasets: Sequence[str],
    benchmarks: Mapping[str, dict],
) -> ModelCardData:
    """Returns the metadata of a checkpoint's card.

    Args:
        name: the title of the card.
        family: the dense model's `model_type`.
        base_model: Hub id of the dense model; None if it has none.
        datasets: Hub ids of the training data.
        benchmarks: name of each benchmark -> its comparison, as `benchmark_rows` takes it.
    """
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["squint", "sparse", "visual-token-pruning", "distillation", family],
        datasets=list(datasets) or None,
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="image-text-to-text",
                dataset_type=benchmark,
                dataset_name=row["title"],
                metric_type=row["metric"],
                metric_value=round(row["sparse"], 2),
            )
            for benchmark, row in benchmarks.items()
        ]
        or None,
    )
    set_origin(data, base_model, licence)
    return data


def set_origin(data: ModelCardData, base_model: str | None, licence: Licence | None) -> None:
    """Writes into metadata what the model was made of, and under which licence. None leaves what is there."""
    if base_model is not None:
        data.base_model = base_model
        data.base_model_relation = "finetune"  # the Hub knows no relation for a model that was made sparse
    if licence is not None:
        data.license, data.license_name, data.license_link = licence.id, licence.name, licence.link


def licence_of(data: ModelCardData) -> Licence | None:
    """Returns the licence that metadata state."""
    stated = (data.license, getattr(data, "license_name", None), getattr(data, "license_link", None))
    licence, *more = (value if isinstance(value, str) else None for value in stated)
    return None if licence is None else Licence(licence, *more)


def base_license(path: str | os.PathLike) -> Licence | None:
    """Returns the licence that the base model's own card states.

    Returns:
        The licence. None where no card is within reach, or where the card states none.

    Raises:
        UserError: there is a card, and its metadata cannot be read.
    """
    source = path
    if Path(path).is_dir():
        source = Path(path) / "README.md"
        if not source.is_file():
            return None
    try:
        return licence_of(load_card(source).data)
    except (OSError, HFValidationError):  # HFValidationError: the Hub has no such names
        return None


def stated_base_model(folder: str | os.PathLike) -> str | None:
    """Returns the Hub id of the base model that the card in a folder states; None where it states none.

    Raises:
        UserError: there is a card, and its metadata cannot be read.
    """
    path = Path(folder) / "README.md"
    base = load_card(path).data.base_model if path.is_file() else None
    return base if isinstance(base, str) else None


def load_card(source: str | os.PathLike) -> ModelCard:
    """Returns a model card.

    Args:
        source: a file, or the Hub id of a model.

    Raises:
        UserError: its metadata cannot be read.
        OSError: there is no card within reach.
        HFValidationError: the Hub has no such names.
    """
    try:
        return ModelCard.load(source)
    except HFValidationError:
        raise
    except (ValueError, TypeError, AttributeError, YAMLError) as error:
        raise UserError(f"{source}: not a model card that can be read ({error})") from None
