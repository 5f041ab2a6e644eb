"""The stage that publishes the checkpoint, what the first stage looks at for it, and the files that travel along."""

from pathlib import Path
from typing import Any

import yaml

from checkpoints.card import Licence
from checkpoints.publish.hub import Destination, look
from checkpoints.publish.publish import Origin, known_licence, publish
from training.files import write_text
from training.recipe.publish import PublishSettings
from training.recipe.student import SparsifyRecipe
from training.run import Run, console, device
from training.schema import CHECKOUT
from training.starts import RECIPE

HEAD = "# The recipe that this checkpoint was made by. Of files outside the project only the names are given.\n"


def check_publishing(recipe: SparsifyRecipe) -> None:
    """Looks at what can be looked at before there is a checkpoint.

    Raises:
        UserError: the licence is unknown, or the recipe's user may not write there.
    """
    settings = recipe.publish
    if settings is not None:
        origin = _origin(settings)
        origin.check()
        known_licence(origin.licence, settings.base_model or recipe.model.path, "publish")
        look(_destination(settings))


def add_record(run: Run) -> None:
    """Writes into the checkpoint by what it was made: recipe, plan and result."""
    checkpoint = run.directory / "checkpoint"
    recipe = without_folders(run.recipe.model_dump(mode="json"))
    write_text(checkpoint / RECIPE, HEAD + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    for name in ("plan.json", "result.json"):
        write_text(checkpoint / name, (run.directory / name).read_text(encoding="utf-8"))


def without_folders(value: Any) -> Any:
    """Returns what was read from YAML without folders of this machine.

    Files of this project keep their place in it. Of others, and of what lies above the working directory, the last part
    is left.
    """
    if isinstance(value, dict):
        return {key: without_folders(child) for key, child in value.items()}
    if isinstance(value, list):
        return [without_folders(child) for child in value]
    if not isinstance(value, str):
        return value
    path = Path(value)
    if path.is_relative_to(CHECKOUT) and ".." not in path.parts:
        return path.relative_to(CHECKOUT).as_posix()
    return path.name if path.is_absolute() or value.startswith("~") or ".." in path.parts else value


def publish_checkpoint(run: Run) -> dict:
    """Publishes the checkpoint."""
    settings = run.recipe.publish
    url = publish(
        run.directory / "checkpoint",
        _destination(settings),
        _origin(settings),
        device(),
        print_line=lambda line: console.print(line, soft_wrap=True, markup=False, highlight=False),
    )
    return {"url": url}


def _destination(settings: PublishSettings) -> Destination:
    names = ("repo_id", "private", "revision", "pull_request", "tag")
    return Destination(**{name: getattr(settings, name) for name in names})


def _origin(settings: PublishSettings) -> Origin:
    licence = settings.license and Licence(settings.license, settings.license_name, settings.license_link)
    return Origin(licence or None, settings.base_model, settings.datasets)
