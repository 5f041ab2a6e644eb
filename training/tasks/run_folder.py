"""Where the stages of a run of students leave what they make, in the run's folder:

calibration/             the cache of the dense model's statistics
calibration.safetensors  this run's own statistics, where a planner reads them
latency.json             timings of this machine, where a budget bounds latency
teacher_answers.safetensors   the dense model's answers to the training data, where they are kept
gates/NAME/              what was learned for the plan of a student, where its plan is learned
search/NAME/             what was measured to find the plan of a student, where its planner searches
plans/NAME.json          the plan of each student, with lists of units of the dense model
students/NAME/           the training of each distilled student
evaluation/NAME.json     each model's answers to the held-out questions
"""

from pathlib import Path

from modeling.visual_plan import VisualPlan
from training.measure.latency import LatencyTable
from training.run import Run

TEACHER, GREY = "teacher", "grey"
"""The dense model's answers, and its answers to grey pictures, among the evaluations."""
ANSWERS = "teacher_answers.safetensors"
LATENCY = "latency.json"
CALIBRATION = "calibration.safetensors"


def plan_path(run: Run, name: str) -> Path:
    return run.directory / "plans" / f"{name}.json"


def load_plan(run: Run, name: str) -> VisualPlan:
    return VisualPlan.load(plan_path(run, name))


def load_latency(run: Run) -> LatencyTable | None:
    """Returns the timings of this machine; None where no budget asks for them."""
    path = run.directory / LATENCY
    return LatencyTable.load(path) if path.exists() else None


def gates_folder(run: Run, name: str) -> Path:
    return run.directory / "gates" / name


def student_folder(run: Run, name: str) -> Path:
    return run.directory / "students" / name


def evaluation_path(run: Run, name: str) -> Path:
    return run.directory / "evaluation" / f"{name}.json"


def search_folder(run: Run, name: str) -> Path:
    return run.directory / "search" / name
