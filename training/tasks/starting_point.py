"""What a run of students begins with: a dense model, or a sparse checkpoint that is worked on further.

The weights of a sparse checkpoint are a dense model's, in an order of units of their own. So every stage takes them as
such, and plans of the run count units in that order. What a checkpoint has shut its weights were not trained for, so no
plan may open it.
"""

from pathlib import Path

from transformers import PreTrainedConfig

from checkpoints.build import starting_plan
from checkpoints.families import reference_images
from checkpoints.processor import load_processor
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.distillation.students import limited_config
from training.recipe.frontier import FrontierRecipe
from training.recipe.model import ModelSettings
from training.recipe.student import StudentRecipe
from training.tasks.shared_plans import with_own_plans

SIZES = (
    "model_type",
    "vocab_size",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)
"""Fields of a text decoder in which a teacher and its student are alike."""


def check_starting_point(recipe: StudentRecipe, config_path: str | None = None) -> None:
    """Checks that the run's plans and its teacher fit what it starts from. No weights are read.

    Args:
        config_path: file of the model's config, if the model itself is not there.

    Raises:
        UserError: a teacher is named beside a dense model, or is another model than the checkpoint was. The task is to
            compare planners, or a plan may open what the checkpoint has shut.
    """
    settings = recipe.model
    start = starting_plan(config_path or settings.path)
    if start is None:
        if settings.teacher is not None:
            raise UserError(
                f"model.teacher: got {settings.teacher}, allowed: null, as {settings.path} is dense and its own teacher"
            )
        return
    if isinstance(recipe, FrontierRecipe):
        raise UserError(
            f"model.path: {settings.path} is a sparse checkpoint, allowed with task {recipe.task}: a dense model, on "
            "which planners are compared"
        )
    config = limited_config(settings, config_path)
    if settings.teacher is not None:
        _check_teacher(settings, config)
        if config_path is None:
            _check_words(settings)
    for student in with_own_plans(recipe):
        plan = student.plan.plan_of_config(config)
        if plan is not None:
            _refuse_opened(plan, start, config, f"student {student.name}: plan")
        elif not student.plan.keeps_plan:
            raise UserError(
                f"student {student.name}: plan.planner: got {student.plan.planner}, which may open what "
                f"{settings.path} has shut; allowed with a sparse checkpoint: keep, a stack of keep and others, or a "
                "plan that settings alone decide"
            )


def dense_in_words(settings: ModelSettings) -> str | None:
    """Returns which dense model teaches and is compared with, where students start from a sparse checkpoint.

    Folders of this machine are named by their last part. It is None where the run starts from a dense model.
    """
    if starting_plan(settings.path) is None:
        return None
    return (
        name_of(settings.teacher) if settings.teacher else f"{name_of(settings.path)}, its weights under the full plan"
    )


def name_of(path: str) -> str:
    """Returns the Hub id of a model, or the last part of its folder."""
    return Path(path).resolve().name if Path(path).exists() else path


def _check_teacher(settings: ModelSettings, config: PreTrainedConfig) -> None:
    """Raises UserError where the teacher is not dense, or differs from the checkpoint in its sizes or its pictures."""
    if starting_plan(settings.teacher) is not None:
        raise UserError(f"model.teacher: {settings.teacher} is a sparse checkpoint, allowed: a dense model")
    found, expected = _sizes(limited_config(settings.of_teacher)), _sizes(config)
    for name, value in found.items():
        if value != expected[name]:
            raise UserError(
                f"model.teacher: {settings.teacher}: {name}: got {value}, {settings.path} has {expected[name]}"
            )


def _check_words(settings: ModelSettings) -> None:
    """Raises UserError where a token has another number in the teacher's tokenizer than in the checkpoint's."""
    ours, theirs = (
        load_processor(path, settings.trust_remote_code).tokenizer.get_vocab()
        for path in (settings.path, settings.teacher)
    )
    differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if differing:
        raise UserError(
            f"model.teacher: {settings.teacher}: {len(differing)} tokens have another number than in {settings.path}, "
            f"first {differing[0]!r}"
        )


def _sizes(config: PreTrainedConfig) -> dict[str, object]:
    """Returns what a teacher and its student must have alike, by name."""
    return {
        "type": config.model_type,
        **{f"text_config.{name}": getattr(config.text_config, name) for name in SIZES},
        "visual tokens of a picture": [list(grid) for grid in reference_images(config)[0]],
    }


def _refuse_opened(plan: VisualPlan, start: VisualPlan, config: PreTrainedConfig, where: str) -> None:
    """Raises UserError if `plan` executes work that `start` does not. Dead work does not count.

    Args:
        plan: a plan of the run.
        start: the checkpoint's plan.
        config: of the model that both are for.
        where: what the message begins with.
    """
    text = config.text_config
    sizes = text.num_key_value_heads, text.intermediate_size
    for index, (now, before) in enumerate(zip(plan.live(*sizes), start.live(*sizes), strict=True)):
        opened = {
            "tokens": now.tokens > before.tokens,
            "attend": now.attend and not before.attend,
            "read": now.read and not before.read,
            "heads": not _members(now.heads) <= _members(before.heads),
            "ffn": not _members(now.ffn) <= _members(before.ffn),
            "radius": now.attend and _distance(now.radius) > _distance(before.radius),
            "bidirectional": now.bidirectional and not before.bidirectional,
        }
        for name, is_opened in opened.items():
            if is_opened:
                raise UserError(
                    f"{where}: layer {index}: {name}: opens what the checkpoint in model.path has shut; allowed: less "
                    "work than its own plan, in the order of its own units"
                )


def _members(units: int | tuple[int, ...]) -> set[int]:
    return set(range(units)) if isinstance(units, int) else set(units)


def _distance(radius: int | None) -> float:
    return float("inf") if radius is None else radius
