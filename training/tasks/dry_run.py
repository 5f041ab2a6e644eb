"""Shows what a recipe would do and cost. It reads the model's config alone, and writes nothing."""

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import PreTrainedConfig

from checkpoints.build import dense_config
from checkpoints.families import PICTURE, reference_images, sparse_class
from modeling.visual_layout import num_tokens
from modeling.visual_plan import VisualPlan
from training.distillation.lora import add_lora
from training.measure.budget import Budget
from training.measure.costs import TEXT_TOKENS, cost_sheet
from training.recipe.dense import DenseRecipe
from training.recipe.frontier import FrontierRecipe
from training.recipe.student import SparsifyRecipe, StudentRecipe
from training.report.numbers import COST_LABELS, quantity
from training.tasks.memory import activation_bytes, num_parameters, state_bytes

NUM_PROCESSES = (1, 2, 4, 8)
"""Numbers of processes for which memory is estimated."""

console = Console()


def dry_run(recipe: DenseRecipe | SparsifyRecipe | FrontierRecipe) -> None:
    """Prints what the recipe would do and cost.

    Raises:
        UserError: its model is not supported, or its plan does not fit the model.
    """
    console.print(f"recipe [bold]{recipe.name}[/bold] (task {recipe.task}) is valid")
    if isinstance(recipe, StudentRecipe):
        config = dense_config(recipe.model.config or recipe.model.path)
        student = build_on_meta(recipe, config)
        console.print(parameter_table(student))
        console.print(cost_table(recipe, config) if isinstance(recipe, SparsifyRecipe) else points_table(recipe))
        console.print(memory_table(recipe, config, student))


def build_on_meta(recipe: StudentRecipe, config: PreTrainedConfig) -> nn.Module:
    """Returns the student that would be trained, on the meta device, so that its tensors need no memory."""
    values = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
    with torch.device("meta"):
        cls = sparse_class(config)
        student = cls(cls.config_class.from_dict(values))
    if recipe.lora is not None:
        return add_lora(student, recipe.lora)
    student.vision_tower.requires_grad_(False)
    return student


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


def budget_costs(dense: dict, budget: Budget | None) -> dict:
    """Returns the most that a plan may cost in each convention, or None where the budget sets no limit.

    It assumes that only visual work is saved, and nothing of what text does with visual tokens.

    Args:
        dense: costs of the dense model.
        budget: the budget; None if the plan has none.
    """
    bounds = budget.model_dump(exclude_none=True) if budget else {}
    at_most = dict.fromkeys(dense)
    if "visual_flops" in bounds:
        at_most |= {name: bounds["visual_flops"] * dense[name] for name in ("A", "B")}
        saved = dense["B"] - at_most["B"]
        at_most |= {name: dense[name] - saved for name in ("C", "D")}
    if "model_flops" in bounds:
        saved = (1 - bounds["model_flops"]) * dense["C"]
        at_most |= {name: dense[name] - saved for name in ("C", "D")}
    if "kv_bytes" in bounds:
        at_most["kv_bytes"] = bounds["kv_bytes"] * dense["kv_bytes"]
    return at_most


def memory_table(recipe: StudentRecipe, config: PreTrainedConfig, student: nn.Module) -> Table:
    """Returns a table of the estimated memory per process in training (training/tasks/memory.py)."""
    activations = activation_bytes(recipe.training, config, recipe.data.max_length)
    table = Table(
        "processes",
        "ZeRO-2",
        "ZeRO-3",
        "global batch",
        title=f"memory per process, estimated ({gigabytes(activations)} of it activations)",
    )
    for num_processes in NUM_PROCESSES:
        sizes = [
            state_bytes(recipe, student, num_processes, weights_divided=divided) + activations
            for divided in (False, True)
        ]
        settings = recipe.training
        samples = settings.micro_batch_size * settings.gradient_accumulation_steps * num_processes
        table.add_row(str(num_processes), *map(gigabytes, sizes), str(samples))
    return table


def bytes_per_value(recipe: SparsifyRecipe) -> int:
    """Returns the size of one value in the recipe's dtype."""
    return getattr(torch, recipe.model.dtype).itemsize


def gigabytes(count: float) -> str:
    """Returns a number of bytes in GiB, as text."""
    return f"{count / 2**30:.1f} GiB"
