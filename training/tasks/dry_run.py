"""Shows what a recipe would do and cost. It reads the model's config alone, and writes nothing."""

import os

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import PreTrainedConfig

from checkpoints.families import PICTURE, reference_images
from modeling.visual_layout import num_tokens
from modeling.visual_plan import VisualPlan
from training.changes import decided, undecided
from training.distillation.students import limited_config
from training.instruct.base import check_config
from training.measure.costs import TEXT_TOKENS, cost_sheet
from training.recipe.dense import DenseRecipe
from training.recipe.frontier import FrontierRecipe
from training.recipe.instruct import InstructRecipe
from training.recipe.student import SparsifyRecipe, StudentRecipe
from training.recipe.training import TrainingSettings
from training.report.numbers import COST_LABELS, quantity
from training.run import Stage
from training.tasks import frontier, sparsify
from training.tasks.forecast.assumptions import Assumptions
from training.tasks.forecast.budget_costs import budget_costs
from training.tasks.forecast.sizes import Sizes, build_on_meta, num_parameters, sizes_of
from training.tasks.forecast.stage_hours import Hours, hours_by_stage
from training.tasks.forecast.stage_memory import ESTIMATES, HEADROOM, PROCESSES_PER_MACHINE, memory_by_stage
from training.tasks.shared_plans import races
from training.tasks.starting_point import check_starting_point

PRECISION = "bfloat16"
"""What `precision: auto` is counted as."""

console = Console()


def dry_run(
    recipe: DenseRecipe | InstructRecipe | SparsifyRecipe | FrontierRecipe, assumed: Assumptions | None = None
) -> None:
    """Prints what the recipe would do and cost. Of several processes, the first one does.

    Args:
        assumed: what is assumed of devices and data. None takes the defaults.

    Raises:
        UserError: its model is not supported, its plan does not fit the model, or as `check_starting_point`.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    if isinstance(recipe, InstructRecipe):
        check_config(recipe.model.path)
    console.print(f"recipe [bold]{recipe.name}[/bold] (task {recipe.task}) is valid")
    if not isinstance(recipe, StudentRecipe):
        console.print(f"memory and hours are not estimated for task {recipe.task}", soft_wrap=True)
    if isinstance(recipe, StudentRecipe):
        for field in undecided(recipe):
            console.print(f"{field}: auto is counted as {PRECISION}", soft_wrap=True)
        recipe = decided(recipe, dict.fromkeys(undecided(recipe), PRECISION))
        if recipe.model.max_frames is not None:
            console.print(
                f"model.max_frames is {recipe.model.max_frames}, but videos are not counted: hours are of samples with "
                "one picture, memory is of samples of data.max_length tokens",
                soft_wrap=True,
            )
        config = limited_config(recipe.model, recipe.model.config)
        check_starting_point(recipe, recipe.model.config)
        student = build_on_meta(recipe.lora, config)
        console.print(parameter_table(student))
        for line in race_lines(recipe):
            console.print(line, soft_wrap=True)
        console.print(cost_table(recipe, config) if isinstance(recipe, SparsifyRecipe) else points_table(recipe))
        assumed = assumed or Assumptions()
        for table in stage_tables(recipe, config, sizes_of(recipe, config, student, assumed), assumed):
            console.print(table)


def race_lines(recipe: StudentRecipe) -> list[str]:
    """Returns a line for each race: its rounds, and the steps that it takes besides those of the student."""
    lines = []
    for student in races(recipe):
        extra, max_steps = student.plan.extra_steps, recipe.training.max_steps
        rounds = ", ".join(f"{count} candidates to step {step:,}" for count, step in student.plan.rounds) or "no rounds"
        lines.append(
            f"student {student.name}: a race ({rounds}) takes {extra:,} steps besides the student's {max_steps:,}, "
            f"{extra / max_steps:.1%} of them"
        )
    return lines


def parameter_table(student: nn.Module) -> Table:
    """Returns a table of how many parameters there are, and how many of them are trained."""
    table = Table("parameters", "of them trained", title="student")
    total, trained = num_parameters(student)
    table.add_row(f"{total:,}", f"{trained:,} ({trained / total:.2%})")
    return table


def points_table(recipe: FrontierRecipe) -> Table:
    """Returns a table of the students of a frontier."""
    table = Table("planner", "budgets", "seeds", "students", title=f"{len(recipe.students)} students")
    for name, planner in recipe.planners.items():
        budgets = ["its own" if budget is None else f"{budget:.0%}" for budget in recipe.budgets_of(planner)]
        num_students = sum(point[0] == name for point in recipe.points())
        table.add_row(name, ", ".join(budgets), str(len(planner.seeds)), str(num_students))
    return table


def cost_table(recipe: SparsifyRecipe, config: PreTrainedConfig) -> Table:
    """Returns a table of the costs of the dense model and of the plan.

    If weights or data decide the plan, it shows the most that the budget allows.
    """
    plan = recipe.plan.plan_of_same_cost(config)
    sheet = cost_sheet(plan or VisualPlan.dense(config.text_config.num_hidden_layers), config, bytes_per_value(recipe))
    dense = sheet["dense"]
    left = sheet["plan"] if plan else budget_costs(dense, recipe.plan.bound)
    origin = f"plan ({recipe.plan.planner})" if plan else f"plan ({recipe.plan.planner}): at most"
    grids, size = reference_images(config)[0], " x ".join(map(str, PICTURE))
    num_grids = f"{len(grids)} {'grid' if len(grids) == 1 else 'grids'}"
    picture = f"a picture of {size} pixels: {num_tokens(grids)} visual tokens in {num_grids}"
    table = Table("prefill", "dense", origin, "left", title=f"cost of {picture}, and {TEXT_TOKENS} text tokens")
    for key, label in COST_LABELS.items():
        if left[key] is None:
            table.add_row(label, quantity(dense[key]), "as the search finds", "")
        else:
            table.add_row(label, quantity(dense[key]), quantity(left[key]), f"{left[key] / dense[key]:.1%}")
    return table


def stage_tables(recipe: StudentRecipe, config: PreTrainedConfig, sizes: Sizes, assumed: Assumptions) -> list[Table]:
    """Returns tables of what each stage needs: memory of a device, memory of a machine, hours.

    A stage that does not fit a device is marked.
    """
    memory = {count: memory_by_stage(recipe, sizes, count) for count in assumed.processes}
    hours = {count: hours_by_stage(recipe, config, sizes, assumed, count) for count in assumed.processes}
    room = assumed.device_memory * HEADROOM

    def on_device(stage: str, count: int) -> str:
        needed = memory[count][stage].device
        return gigabytes(needed) + (", does not fit" if needed > room else "")

    stages = [stage.name for stage in stages_of(recipe)]
    sample = f"samples of {sizes.visual_tokens} visual and {sizes.text_tokens} text tokens"
    rows = [
        (
            f"memory of each device, estimated; up to {HEADROOM:.0%} of {gigabytes(assumed.device_memory)} fit",
            [stage for stage in stages if stage in ESTIMATES],
            on_device,
        ),
        (
            f"memory of a machine at most, estimated; up to {PROCESSES_PER_MACHINE} processes on each",
            [stage for stage in stages if stage in ESTIMATES],
            lambda stage, count: gigabytes(memory[count][stage].host),
        ),
        (
            f"hours, estimated; {assumed.device_flops:.2g} FLOP/s on each device, {sample}",
            [stage for stage in stages if stage in hours[assumed.processes[0]]],
            lambda stage, count: in_words(hours[count][stage]),
        ),
    ]
    tables = []
    for title, names, cell in rows:
        table = Table("processes", *map(str, assumed.processes), title=title)
        for name in names:
            table.add_row(name, *(cell(name, count) for count in assumed.processes))
        tables.append(table)
    tables[0].add_row("global batch", *(str(global_batch(recipe.training, count)) for count in assumed.processes))
    return tables


def stages_of(recipe: StudentRecipe) -> list[Stage]:
    """Returns the stages of the recipe's run."""
    return sparsify.stages(recipe) if isinstance(recipe, SparsifyRecipe) else frontier.stages(recipe)


def global_batch(settings: TrainingSettings, processes: int) -> int:
    """Returns the samples in one optimizer step."""
    return settings.micro_batch_size * settings.gradient_accumulation_steps * processes


def in_words(hours: Hours) -> str:
    """Returns hours as text."""
    number = f"{hours.value:.1f}" if hours.value >= 1 else f"{hours.value:.2f}"
    return f"{number if hours.value >= 0.01 else 'under 0.01'} {hours.per}".strip()


def bytes_per_value(recipe: SparsifyRecipe) -> int:
    """Returns the size of one value in the recipe's dtype."""
    return getattr(torch, recipe.model.dtype).itemsize


def gigabytes(count: float) -> str:
    """Returns a number of bytes in GiB, as text."""
    return f"{count / 2**30:.1f} GiB"
