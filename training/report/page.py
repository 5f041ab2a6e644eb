"""The report of a run: one HTML page that shows what the run left in its folder (training/report/inputs.py).

The page needs no other file. Everything that comes from the run is escaped, and the page is not allowed to load
anything.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from pydantic import TypeAdapter

from checkpoints.card import benchmark_rows, speed_conditions, speed_rows
from training.files import write_text
from training.recipe.race import PlannerSettings, RaceSettings
from training.report.data_uris import figure_uri
from training.report.gate_plots import budget_plot, gates_plot
from training.report.inputs import Inputs, read_inputs
from training.report.next_steps import commands, links, trackers
from training.report.numbers import COST_LABELS, percent, quantity
from training.report.plan_plots import plan_plot, plans_plot
from training.report.result_plots import comparison_plot, curves_plot, families_plot
from training.report.samples import choose_samples, own_answers, sample_card
from training.report.search_plots import search_plot

TEMPLATES = Path(__file__).resolve().parent / "templates"

FIGURES = {
    "teacher_accuracy": ("dense accuracy", "%"),
    "student_accuracy": ("student accuracy", "%"),
    "relative_accuracy": ("relative accuracy", "%"),
    "visual_flops": ("visual FLOPs left", "%"),
    "model_flops": ("model FLOPs left", "%"),
    "kv_bytes": ("key/value bytes left", "%"),
    "prefill_speedup": ("faster prefill", "×"),
}
"""Key in result.json -> label and unit of the figure."""
CURVES = {
    "loss": "loss",
    "eval_loss": "loss on held-out samples",
    "cross_entropy": "cross entropy",
    "forward_kl": "KL to the teacher",
    "reverse_kl": "reverse KL to the teacher",
    "jensen_shannon": "Jensen-Shannon divergence to the teacher",
    "hidden_cosine": "cosine distance to the teacher's states",
}
"""Key in metrics.jsonl -> name of the curve."""


def write_report(run_directory: Path, made: Mapping[str, str]) -> Path:
    """Writes `report.html` into the run's folder, and returns its path.

    Args:
        made: what is said of the training, by its label, as `render` takes it.

    Raises:
        UserError: a file that the report needs is missing or broken, or a picture cannot be opened.
    """
    path = run_directory / "report.html"
    write_text(path, render(read_inputs(run_directory), made))
    return path


def render(inputs: Inputs, made: Mapping[str, str]) -> str:
    """Returns the page as HTML.

    Args:
        made: what is said of the training, by its label: `training_rows` of training/tasks/publishing/card.py. The
            page begins with some of it: `plan`, `trained on`, `steps`, `asked` and `machine`.

    Raises:
        UserError: a picture cannot be opened.
    """
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.filters["percent"] = lambda share: percent(share).replace(" ", "\N{NO-BREAK SPACE}")
    evaluations, cost = inputs.evaluations, inputs.cost
    dense, student = evaluations["dense"], evaluations["student"]
    answers = (own_answers(evaluation.records, inputs.recipe) for evaluation in (dense, student))
    sizes = cost["num_units"], cost["intermediate_size"]
    plots = {
        "plan": plan_plot(inputs.plan, *sizes, cost["layers"]),
        "comparison": comparison_plot(inputs.rows),
        "families": families_plot({name: evaluation.families for name, evaluation in evaluations.items()}),
        "curves": curves_plot(curves(inputs.metrics)),
        "plans": plans_plot(inputs.plans, *sizes),
    }
    return environment.get_template("report.html").render(
        name=inputs.recipe["name"],
        model=inputs.recipe["model"]["path"],
        shape=inputs.speed["shape"],
        made={label: text.replace("`", "") for label, text in made.items()},  # the card has Markdown
        result=inputs.result,
        links=links(inputs.folder),
        commands=commands(inputs.folder),
        trackers=trackers(inputs.recipe, inputs.folder),
        speed=speed_rows(inputs.speed),
        speed_conditions=speed_conditions(inputs.speed),
        goes_on=inputs.data.get("goes_on"),
        figures=[(label, figure_text(inputs.result[key], unit)) for key, (label, unit) in FIGURES.items()],
        plots={name: figure_uri(plot) for name, plot in plots.items()},
        race=inputs.result.get("race"),
        search=None if inputs.search_folder is None else figure_uri(plot_search(inputs, inputs.search_folder)),
        learned=None if inputs.learned is None else learned_section(**inputs.learned),
        costs=cost_rows(cost),
        rows=inputs.rows,
        families=list(dense.families),
        models=list(evaluations),
        family_rows=[
            *(
                (name, value.count, [evaluation.families[name] for evaluation in evaluations.values()])
                for name, value in dense.families.items()
            ),
            ("all", dense.overall.count, [evaluation.overall for evaluation in evaluations.values()]),
        ],
        benchmarks=benchmark_rows(inputs.result["benchmarks"]),
        prompts=prompts_of(inputs.recipe),
        samples=[sample_card(*pair) for pair in choose_samples(*answers)],
        data=data_rows(inputs.data),
        stages=stage_rows(inputs.result["seconds"]),
        recipe=yaml.safe_dump(inputs.recipe, sort_keys=False, allow_unicode=True),
        environment=yaml.safe_dump(inputs.environment, sort_keys=False, allow_unicode=True),
    )


def plot_search(inputs: Inputs, folder: Path) -> Figure:
    """Returns the plot of the search for the student's plan. `folder` is the folder of the search."""
    settings = TypeAdapter(PlannerSettings).validate_python(inputs.recipe["plan"])
    if isinstance(settings, RaceSettings):
        settings = settings.candidates[inputs.result["race"]["winner"]]
    return search_plot(inputs.plan, inputs.result["visual_flops"], settings, folder)


def learned_section(history: list[dict], metrics: list[dict], hardening: dict) -> dict:
    """Returns what the page shows of how the plan was learned.

    Args:
        history: rows of gates.jsonl.
        metrics: rows of the metrics.jsonl that was written while gates were learned.
        hardening: the content of hardening.json.
    """
    ((measure, budget),) = hardening["budget"].items()
    return {
        "measure": measure,
        "hardening": hardening,
        "gates": figure_uri(gates_plot(history)),
        "budget": figure_uri(budget_plot(metrics, budget, hardening["cost"])),
    }


def curves(metrics: Sequence[dict]) -> dict[str, list[tuple[int, float]]]:
    """Returns name -> (step, value) pairs, for the loss and for each single loss that was logged.

    Values that are not positive are left out, as the axis is logarithmic.
    """
    points = {
        label: [(row["step"], row[key]) for row in metrics if row.get(key, 0) > 0] for key, label in CURVES.items()
    }
    return {label: pairs for label, pairs in points.items() if pairs}


def cost_rows(cost: dict) -> list[tuple[str, str, str, str]]:
    """Returns four texts for each cost that was counted: its name, dense cost, plan's cost, and share that is left."""
    dense, plan = cost["dense"], cost["plan"]
    return [
        (label, quantity(dense[key]), quantity(plan[key]), percent(plan[key] / dense[key]))
        for key, label in COST_LABELS.items()
        if dense[key] is not None
    ]


def prompts_of(recipe: dict) -> str:
    """Returns whose prompts the benchmarks of a resolved recipe are asked with; an empty text if it names none."""
    return " and ".join(sorted({entry["prompts"] for entry in recipe["data"]["evaluation"] if "prompts" in entry}))


def data_rows(data: dict) -> list[tuple[str, int, list[tuple[str, int]]]]:
    """Returns of each role its name, the number of samples used, and the kinds of those left out with their numbers."""
    return [(role, count, list(data["left_out"].get(role, {}).items())) for role, count in data["used"].items()]


def stage_rows(seconds: dict[str, float]) -> list[tuple[str, str, float]]:
    """Returns name, seconds and width of the bar for each stage. The last row is the total, without a bar.

    A width is a percentage of the longest bar's.
    """
    longest = max(seconds.values())
    rows = [(stage, f"{value:.0f}", round(100 * value / longest, 1)) for stage, value in seconds.items()]
    return [*rows, ("all", f"{sum(seconds.values()):.0f}", 0.0)]


def figure_text(value: float | None, unit: str) -> str:
    """Returns a figure of result.json in its unit. For "%", `value` is a share, or None where there is none."""
    if unit == "%" or value is None:
        return percent(value)
    return f"{value:.2f} {unit}"
