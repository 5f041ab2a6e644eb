"""What a recipe would do and cost, from its model's config alone: no weights, no data, nothing written."""

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
from training.recipe.training import TrainingSettings

CONVENTIONS = {
    "A": "A: multiply-accumulates, visual tokens",
    "B": "B: FLOPs, visual tokens",
    "C": "C: FLOPs, decoder prefill",
    "D": "D: FLOPs, with vision tower and projector",
    "kv_bytes": "key/value bytes",
}
WORLD_SIZES = (1, 2, 4, 8)
# Adam in mixed precision, bytes per trained weight: fp32 copy and two moments.
OPTIMIZER_BYTES = 12
# Bytes per token, layer and hidden value that a layer keeps for its backward, attention maps recomputed: arXiv 2205.05198.
ACTIVATION_BYTES = 34

console = Console()


def dry_run(recipe: DenseRecipe | SparsifyRecipe | FrontierRecipe) -> None:
    """Print what the recipe comes to. Raises UserError where its model is not supported or its plan does not fit."""
    console.print(f"recipe [bold]{recipe.name}[/bold] (task {recipe.task}) is valid")
    if isinstance(recipe, StudentRecipe):
        config = dense_config(recipe.model.config or recipe.model.path)
        student = build_on_meta(recipe, config)
        console.print(parameter_table(student))
        console.print(cost_table(recipe, config) if isinstance(recipe, SparsifyRecipe) else points_table(recipe))
        console.print(memory_table(recipe, config, student))


def build_on_meta(recipe: StudentRecipe, config: PreTrainedConfig) -> nn.Module:
    """The student that would be trained, every tensor without memory."""
    values = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
    with torch.device("meta"):
        cls = sparse_class(config)
        student = cls(cls.config_class.from_dict(values))
    if recipe.lora is not None:
        return add_lora(student, recipe.lora)
    student.vision_tower.requires_grad_(False)
    return student


def parameter_table(student: nn.Module) -> Table:
    table = Table("parameters", "of them trained", title="student")
    total, trained = num_parameters(student)
    table.add_row(f"{total:,}", f"{trained:,} ({trained / total:.2%})")
    return table


def points_table(recipe: FrontierRecipe) -> Table:
    """How many students a frontier has."""
    table = Table("planner", "budgets", "seeds", "students", title=f"{len(recipe.students)} students")
    for name, planner in recipe.planners.items():
        budgets = ["its own" if budget is None else f"{budget:.0%}" for budget in recipe.budgets_of(planner)]
        num_students = sum(point[0] == name for point in recipe.points())
        table.add_row(name, ", ".join(budgets), str(len(planner.seeds)), str(num_students))
    return table


def cost_table(recipe: SparsifyRecipe, config: PreTrainedConfig) -> Table:
    """Dense against plan; where the plan is still to be found, what its budget allows at most."""
    plan = recipe.plan.plan_of_same_cost(config)
    sheet = cost_sheet(plan or VisualPlan.dense(config.text_config.num_hidden_layers), config, bytes_per_value(recipe))
    dense = sheet["dense"]
    left = sheet["plan"] if plan else budget_costs(dense, recipe.plan.bound)
    origin = f"plan ({recipe.plan.planner})" if plan else f"plan ({recipe.plan.planner}): at most"
    grids, size = reference_images(config)[0], " x ".join(map(str, PICTURE))
    picture = f"a picture of {size} pixels: {num_tokens(grids)} visual tokens in {len(grids)} {'grid' if len(grids) == 1 else 'grids'}"
    table = Table("prefill", "dense", origin, "left", title=f"cost of {picture}, and {TEXT_TOKENS} text tokens")
    for key, label in CONVENTIONS.items():
        if left[key] is None:
            table.add_row(label, quantity(dense[key]), "as the search finds", "")
        else:
            table.add_row(label, quantity(dense[key]), quantity(left[key]), f"{left[key] / dense[key]:.1%}")
    return table


def budget_costs(dense: dict, budget: Budget | None) -> dict:
    """Upper bounds in each convention, None where the budget, if there is one, sets none. Visual FLOPs fall to their bound, the
    work that text shares with visual tokens may stay."""
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
    """Estimated memory per process in training: weights, gradients and optimizer as ZeRO cuts them, and activations."""
    settings = recipe.training
    total, trained = num_parameters(student)
    width = 2 if settings.precision == "bfloat16" else 4
    activations = activation_bytes(settings, config, recipe.data.max_length, width)
    second_model = recipe.lora is None and recipe.distillation.needs_teacher
    table = Table(
        "processes",
        "ZeRO-2",
        "ZeRO-3",
        "global batch",
        title=f"memory per process, estimated ({gigabytes(activations)} of it activations)",
    )
    for size in WORLD_SIZES:
        states = trained * (width + OPTIMIZER_BYTES) / size
        teacher = total * width if second_model else 0
        samples = settings.micro_batch_size * settings.gradient_accumulation_steps * size
        sizes = [weights + teacher + states + activations for weights in (total * width, total * width / size)]
        table.add_row(str(size), *map(gigabytes, sizes), str(samples))
    return table


def activation_bytes(settings: TrainingSettings, config: PreTrainedConfig, max_length: int, width: int) -> float:
    """Of a batch of the longest samples in the dense decoder; a sparse student keeps less."""
    text = config.text_config
    values = settings.micro_batch_size * max_length * text.hidden_size
    whole_layers, inputs_kept = (
        (1, text.num_hidden_layers) if settings.gradient_checkpointing else (text.num_hidden_layers, 0)
    )
    return values * (whole_layers * ACTIVATION_BYTES * width / 2 + inputs_kept * width)


def num_parameters(model: nn.Module) -> tuple[int, int]:
    """All, and those trained."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(count for count, _ in counts), sum(count for count, trained in counts if trained)


def bytes_per_value(recipe: SparsifyRecipe) -> int:
    return getattr(torch, recipe.model.dtype).itemsize


def gigabytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def quantity(value: float) -> str:
    """Three digits and an SI prefix."""
    for prefix in ("", " k", " M", " G", " T"):
        if value < 1000:
            break
        value /= 1000
    return f"{value:.3g}{prefix}"
