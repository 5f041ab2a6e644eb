"""The report of a run: one self-contained HTML page that a person can look at, made from what the run left on disk.

It reads from the run's folder:

    recipe.yaml, env.json      the resolved recipe and the environment
    result.json                the run's figures, flat (teacher_accuracy, …); `seconds`: {stage: seconds}
    plan.json                  the student's VisualPlan
    cost.json                  {"num_units", "intermediate_size", "layers": [visual FLOPs left, per layer],
                               "dense" and "plan": {"A", "B", "C", "D" (or null), "kv_bytes"}}
    table.json                 rows of the comparison, the dense model first: {name, plan, distilled, visual_flops,
                               model_flops, accuracy, low, high, relative_accuracy, families: {family: accuracy}}
    metrics.jsonl              one object per logged step: `step`, `loss` and the parts of the loss
    search/student/            what was measured where the student's plan was searched (training/planners/)
    gates/student/             where the student's plan was learned: trainer/gates.jsonl, trainer/metrics.jsonl, hardening.json
    evaluation/teacher.json, evaluation/student.json, evaluation/grey.json
                               `Evaluation` of the dense model, the student, and the dense model shown grey pictures

Whatever stands in them is text to the page: it is escaped, and the page may load nothing.
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from pydantic import TypeAdapter

from data.images import open_image
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.distillation.callbacks import read_metrics
from training.measure.evaluation import Evaluation, Record
from training.recipe.gates import PlannerSettings
from training.report.gate_plots import budget_picture, gates_picture, plans_picture
from training.report.plots import comparison_picture, curves_picture, families_picture, percent, plan_picture, png
from training.report.search_plots import search_picture

TEMPLATES = Path(__file__).resolve().parent / "templates"

FIGURES = {  # result.json key: (label, unit)
    "teacher_accuracy": ("dense accuracy", "%"),
    "student_accuracy": ("student accuracy", "%"),
    "relative_accuracy": ("relative accuracy", "%"),
    "visual_flops": ("visual FLOPs left", "%"),
    "model_flops": ("model FLOPs left", "%"),
    "kv_bytes": ("key/value bytes left", "%"),
    "prefill_speedup": ("faster prefill", "×"),
}
COSTS = {
    "A": "A: multiply-accumulates, visual tokens",
    "B": "B: FLOPs, visual tokens",
    "C": "C: FLOPs, decoder prefill",
    "D": "D: FLOPs, with vision tower and projector",
    "kv_bytes": "bytes of keys and values",
}
CURVES = {
    "loss": "loss",
    "cross_entropy": "cross entropy",
    "forward_kl": "KL to the teacher",
    "reverse_kl": "reverse KL to the teacher",
    "jensen_shannon": "Jensen-Shannon divergence to the teacher",
    "hidden_cosine": "cosine distance to the teacher's states",
}
NUM_SAMPLES = 12
THUMBNAIL_PIXELS = 320


@dataclass(frozen=True)
class Inputs:
    """What a run's folder says, read and parsed."""

    recipe: dict
    environment: dict
    result: dict
    plan: VisualPlan
    cost: dict
    rows: list[dict]
    metrics: list[dict]
    evaluations: dict[str, Evaluation]
    """By the name they have in the report."""
    plans: dict[str, VisualPlan]
    """Of the table's rows, each plan once, by the first row that has it."""
    search: Figure | None
    """What was measured, where the plan was searched."""
    learned: dict | None
    """Where the plan was learned: `history` (gates.jsonl), `metrics` and `hardening`."""


def write_report(run_directory: Path) -> Path:
    """Writes `report.html` into the run's folder, whole or not at all, and returns its path.

    Raises:
        UserError: a file the report needs is missing or does not hold what it should, or a picture cannot be opened.
    """
    page = render(read_inputs(run_directory))
    path = run_directory / "report.html"
    partial = path.with_name("report.html.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


def read_inputs(run_directory: Path) -> Inputs:
    """Reads every file the report needs; UserError names the one that is missing or broken."""

    def text(name: str) -> str:
        try:
            return (run_directory / name).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{run_directory / name}: the report needs this file ({error.strerror})") from None

    def parsed(name: str):
        try:
            return json.loads(text(name))
        except json.JSONDecodeError as error:
            raise UserError(f"{run_directory / name}: not JSON ({error})") from None

    evaluations = {"dense": "teacher", "student": "student", "dense, grey pictures": "grey"}
    for name in ("metrics.jsonl", *(f"evaluation/{file}.json" for file in evaluations.values())):
        text(name)
    learned = None
    if (run_directory / "gates" / "student").is_dir():
        learned = {
            "history": read_metrics(run_directory / "gates/student/trainer/gates.jsonl"),
            "metrics": [
                row for row in read_metrics(run_directory / "gates/student/trainer/metrics.jsonl") if "cost" in row
            ],
            "hardening": parsed("gates/student/hardening.json"),
        }
    recipe, result, plan = (
        yaml.safe_load(text("recipe.yaml")),
        parsed("result.json"),
        VisualPlan.load(run_directory / "plan.json"),
    )
    search = None
    if (run_directory / "search" / "student").is_dir():
        settings = TypeAdapter(PlannerSettings).validate_python(recipe["plan"])
        search = search_picture(plan, result["visual_flops"], settings, run_directory / "search" / "student")
    rows = parsed("table.json")
    plans: dict[str, VisualPlan] = {}
    for row in rows:
        if row["plan"] is not None and (of_row := VisualPlan.load(run_directory / row["plan"])) not in plans.values():
            plans[row["name"]] = of_row
    return Inputs(
        recipe=recipe,
        environment=parsed("env.json"),
        result=result,
        plan=plan,
        cost=parsed("cost.json"),
        rows=rows,
        metrics=read_metrics(run_directory / "metrics.jsonl"),
        evaluations={
            name: Evaluation.load(run_directory / "evaluation" / f"{file}.json") for name, file in evaluations.items()
        },
        plans=plans,
        search=search,
        learned=learned,
    )


def render(inputs: Inputs) -> str:
    """The page as HTML."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.filters["percent"] = percent
    evaluations = inputs.evaluations
    overall = [evaluation.overall for evaluation in evaluations.values()]
    dense = evaluations["dense"]
    return environment.get_template("report.html").render(
        name=inputs.recipe["name"],
        figures=[(label, figure(inputs.result[key], unit)) for key, (label, unit) in FIGURES.items()],
        pictures={
            "plan": data_uri(
                plan_picture(
                    inputs.plan, inputs.cost["num_units"], inputs.cost["intermediate_size"], inputs.cost["layers"]
                )
            ),
            "comparison": data_uri(comparison_picture(inputs.rows)),
            "families": data_uri(families_picture({name: one.families for name, one in evaluations.items()})),
            "curves": data_uri(curves_picture(curves(inputs.metrics))),
            "plans": data_uri(plans_picture(inputs.plans, inputs.cost["num_units"], inputs.cost["intermediate_size"])),
        },
        search=None if inputs.search is None else data_uri(inputs.search),
        learned=None if inputs.learned is None else learned_section(**inputs.learned),
        costs=cost_rows(inputs.cost),
        rows=inputs.rows,
        families=list(dense.families),
        models=list(evaluations),
        family_rows=[
            *(
                (name, value.count, [one.families[name] for one in evaluations.values()])
                for name, value in dense.families.items()
            ),
            ("all", dense.overall.count, overall),
        ],
        samples=[sample_card(*pair) for pair in choose_samples(dense.records, evaluations["student"].records)],
        stages=stage_rows(inputs.result["seconds"]),
        recipe=yaml.safe_dump(inputs.recipe, sort_keys=False, allow_unicode=True),
        environment=yaml.safe_dump(inputs.environment, sort_keys=False, allow_unicode=True),
    )


def learned_section(history: list[dict], metrics: list[dict], hardening: dict) -> dict:
    """What the page says of how the plan was learned."""
    ((measure, share),) = hardening["budget"].items()
    return {
        "measure": measure,
        "hardening": hardening,
        "gates": data_uri(gates_picture(history)),
        "budget": data_uri(budget_picture(metrics, share, hardening["cost"])),
    }


def curves(metrics: Sequence[dict]) -> dict[str, list[tuple[int, float]]]:
    """(step, value) pairs of the loss and of each of its parts that was logged; what is not positive has no logarithm."""
    points = {
        label: [(row["step"], row[key]) for row in metrics if row.get(key, 0) > 0] for key, label in CURVES.items()
    }
    return {label: pairs for label, pairs in points.items() if pairs}


def cost_rows(cost: dict) -> list[tuple[str, str, str, str]]:
    """Label, dense, plan and share left of each cost that was counted."""
    dense, plan = cost["dense"], cost["plan"]
    return [
        (label, quantity(dense[key]), quantity(plan[key]), percent(plan[key] / dense[key]))
        for key, label in COSTS.items()
        if dense[key] is not None
    ]


def stage_rows(seconds: dict[str, float]) -> list[tuple[str, str, float]]:
    """Stage, seconds, and the width of its bar in percent of the longest; the total last, without a bar."""
    longest = max(seconds.values())
    rows = [(stage, f"{value:.0f}", round(100 * value / longest, 1)) for stage, value in seconds.items()]
    return [*rows, ("all", f"{sum(seconds.values()):.0f}", 0.0)]


def choose_samples(teacher: Sequence[Record], student: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Pairs of answers to the same question: half of them right by both models, as many families as there are in either
    half; where one kind runs out, the other fills up."""
    pairs = list(zip(teacher, student, strict=True))
    assert all(one.id == other.id for one, other in pairs)
    right = _by_turns([pair for pair in pairs if is_right(pair[0]) and is_right(pair[1])])
    wrong = _by_turns([pair for pair in pairs if not (is_right(pair[0]) and is_right(pair[1]))])
    num_wrong = min(len(wrong), max(NUM_SAMPLES // 2, NUM_SAMPLES - len(right)))
    return right[: NUM_SAMPLES - num_wrong] + wrong[:num_wrong]


def _by_turns(pairs: list[tuple[Record, Record]]) -> list[tuple[Record, Record]]:
    """The pairs such that families take turns."""
    seen: dict[str, int] = {}
    turns = []
    for pair in pairs:
        family = pair[0].family
        seen[family] = seen.get(family, 0) + 1
        turns.append(seen[family])
    return [pair for _, pair in sorted(zip(turns, pairs, strict=True), key=lambda numbered: numbered[0])]


def is_right(record: Record) -> bool:
    """Wholly right; a caption that leaves something out is not."""
    return record.score == 1.0


def sample_card(teacher: Record, student: Record) -> dict:
    """What the page shows of one question."""
    return {
        "picture": None if teacher.image is None else thumbnail(Path(teacher.image)),
        "question": teacher.question.replace("<image>", "").strip(),
        "answer": teacher.answer,
        "answers": [("dense", teacher, is_right(teacher)), ("student", student, is_right(student))],
    }


def thumbnail(path: Path) -> str:
    """The picture, small and encoded anew, as a data URI. Raises UserError where it cannot be opened."""
    image = open_image(path)
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return _png_uri(buffer.getvalue())


def data_uri(figure: Figure) -> str:
    return _png_uri(png(figure))


def _png_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def figure(value: float | None, unit: str) -> str:
    """A figure of result.json in its unit."""
    if unit == "%" or value is None:
        return percent(value)
    return f"{value:.2f} {unit}"


def quantity(value: float) -> str:
    """A count with three digits and the SI prefix it needs."""
    for prefix in ("", " k", " M", " G"):
        if value < 1000:
            return f"{value:.3g}{prefix}"
        value /= 1000
    return f"{value:.3g} T"
