"""The model card of a run's checkpoint."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from checkpoints.build import starting_plan
from checkpoints.card import base_license, model_card, stated_base_model
from modeling.visual_plan import VisualPlan
from training.distillation.callbacks import read_metrics
from training.evaluation.comparison import Comparison, as_dict
from training.files import read_json
from training.recipe.data import SourceSettings
from training.recipe.model import ModelSettings
from training.recipe.student import STUDENT, SparsifyRecipe
from training.report.page import prompts_of
from training.report.samples import OWN_ROWS
from training.run import Run
from training.starts import ENVIRONMENT
from training.tasks.shared_plans import races


def card_of(
    run: Run,
    plan: VisualPlan,
    config: PreTrainedConfig,
    compared: Mapping[str, Comparison],
    *,
    picture: str,
    speed: Mapping[str, Any] | None = None,
) -> str:
    """Returns the card of the exported student.

    Args:
        plan: the plan in force.
        config: the student's config.
        compared: name of each benchmark -> the student beside the dense model.
        picture: file name of the plan's picture beside the card.
        speed: what was measured on the clock; None before it is.
    """
    recipe = run.recipe
    hub = [source.hub.partition("@")[0].partition(":")[0] for source in recipe.data.train if source.hub is not None]
    return model_card(
        recipe.name,
        plan,
        config,
        base_model=base_model(recipe.model),
        base_license=base_license(recipe.model.path),
        datasets=list(dict.fromkeys(hub)),
        training=training_rows(run, compared),
        rows=read_json(run.directory / "table.json"),
        benchmarks=as_dict(dict(compared)),
        speed=speed,
        picture=picture,
    )


def base_model(settings: ModelSettings) -> str:
    """Returns what the card names as the base model: a folder or a Hub id.

    A sparse checkpoint in a folder hands on the base model of its own card. One on the Hub is the base model, and its
    card there names its own.
    """
    stated = None if starting_plan(settings.path) is None else stated_base_model(settings.path)
    return stated or settings.path


def training_rows(run: Run, compared: Mapping[str, Comparison]) -> dict[str, str]:
    """Returns what card and report say of the training, by its label. It has no folder of this machine."""
    recipe, environment = run.recipe, read_json(run.directory / ENVIRONMENT)
    used, asked = run.result("data")["used"], as_dict(dict(compared))
    steps = max((row["step"] for row in read_metrics(run.directory / "metrics.jsonl")), default=0)
    batch = recipe.global_batches(environment["world_size"])["training"]
    losses = {
        "cross entropy": recipe.distillation.cross_entropy_weight,
        "KL to the dense model": recipe.distillation.forward_kl_weight,
        "reverse KL": recipe.distillation.reverse_kl_weight,
        "Jensen-Shannon divergence": recipe.distillation.jsd_weight,
        "cosine distance of last states": recipe.distillation.hidden_cosine_weight,
    }
    prompts = prompts_of(recipe.model_dump(mode="json"))
    processes, cores = environment["world_size"], f"{environment['cpu_count']} CPU cores"
    on_cpu = f"{cores} ({processes} processes)" if processes > 1 else cores
    commit = environment["commit"] and environment["commit"][:7]
    goes_on = run.result("data").get("goes_on")
    beginning = {"goes on from": f"`{goes_on['from']}`", "dense model": goes_on["dense"]} if goes_on else {}
    return {
        **beginning,
        "trained on": _samples(used, "train", recipe.data.train),
        "steps": f"{steps:,} {'step' if steps == 1 else 'steps'} of {batch:,} samples",
        "losses": ", ".join(f"{weight:g} × {name}" for name, weight in losses.items() if weight),
        "weights trained": "decoder and projector" if recipe.lora is None else f"LoRA, rank {recipe.lora.rank}",
        "learning rate": f"{recipe.training.learning_rate:g}, {recipe.training.lr_schedule}",
        "plan": f"`{recipe.plan.planner}`{_budget(recipe)}{_winner(run)}",
        "plan found on": _samples(used, "calibration", recipe.data.calibration),
        "asked": ", ".join(f"{row['count']:,} questions of {_title(name, row, recipe)}" for name, row in asked.items())
        + (f", prompts of {prompts}" if prompts else ""),
        "machine": f"{processes} × {environment['gpus'][0]}" if environment["gpus"] else on_cpu,
        "code": f"Squint {environment['packages']['squint'] or ''} {commit or ''}".strip(),
    }


def _budget(recipe: SparsifyRecipe) -> str:
    bound = recipe.plan.bound
    if bound is None:
        return ""
    measure = bound.measure.replace("_", " ").replace("flops", "FLOPs")
    return f" within {bound.share:.1%} of the {measure}"


def _winner(run: Run) -> str:
    """Returns what is said of the race that found the plan, if one did."""
    if not races(run.recipe):
        return ""
    outcome = run.result("race")["students"][STUDENT]
    return (
        f", won by `{outcome['winner']}` among {len(outcome['candidates'])} candidates; the race took "
        f"{outcome['extra_steps']:,} more steps ({outcome['extra_share']:.0%})"
    )


def _title(benchmark: str, row: Mapping[str, Any], recipe: SparsifyRecipe) -> str:
    """Returns the name of a benchmark; of rows of one's own the names of their sources."""
    rows = recipe.data.rows_to_ask
    return _names(rows) if rows and benchmark == OWN_ROWS else row["title"]


def _samples(used: Mapping[str, int], role: str, sources: tuple[SourceSettings, ...]) -> str:
    """Returns how many samples were used, and the names of their sources."""
    return (f"{used[role]:,} samples of " if role in used else "") + _names(sources)  # a stream is not counted


def _names(sources: tuple[SourceSettings, ...]) -> str:
    """Returns the names of sources. Folders of this machine are not named."""
    names = [
        source.hub or (source.path and source.path.name) or f"embedded world ({source.split})" for source in sources
    ]
    return ", ".join(dict.fromkeys(names))
