"""Where the stages of a run of students write their files, in the run's folder.

NAME is the name of a student or another model.

    data/                         the indexes of all sources
    calibration/                  cache of the dense model's statistics
    calibration.safetensors       the statistics that this run uses, if a planner reads them
    latency.json                  timings of this machine, if a budget bounds latency
    teacher_answers.safetensors   the teacher's answers to the training data, if the recipe keeps them
    gates/NAME/                   gates and adapters of a student, if its plan is learned
    search/NAME/                  what was measured to find the plan of a student, if its planner measures
    plans/NAME.json               the plan of each student. Its lists name units and neurons of the dense model
    students/NAME/                the training of each distilled student
    evaluation/NAME.json          each model's answers to the held-out questions
"""

from pathlib import Path

from modeling.visual_plan import VisualPlan
from training.measure.latency import LatencyTable
from training.run import Run

DENSE, GREY = "teacher", "grey"
"""Names of evaluations: the dense model, and the dense model that is shown grey pictures."""
ANSWERS = "teacher_answers.safetensors"
"""File of the teacher's answers."""
LATENCY = "latency.json"
"""File of the timings."""
CALIBRATION = "calibration.safetensors"
"""File of the statistics."""


def data_folder(run: Run) -> Path:
    """Returns the folder of the sources' indexes."""
    return run.directory / "data"


def plan_path(run: Run, name: str) -> Path:
    """Returns the path of a student's plan."""
    return run.directory / "plans" / f"{name}.json"


def load_plan(run: Run, name: str) -> VisualPlan:
    """Returns a student's plan."""
    return VisualPlan.load(plan_path(run, name))


def load_latency(run: Run) -> LatencyTable | None:
    """Returns the timings of this machine; None if no budget bounds latency."""
    path = run.directory / LATENCY
    return LatencyTable.load(path) if path.exists() else None


def gates_folder(run: Run, name: str) -> Path:
    """Returns the folder in which a student's plan is learned."""
    return run.directory / "gates" / name


def student_folder(run: Run, name: str) -> Path:
    """Returns the folder in which a student is distilled."""
    return run.directory / "students" / name


def evaluation_path(run: Run, name: str) -> Path:
    """Returns the path of a model's evaluation."""
    return run.directory / "evaluation" / f"{name}.json"


def search_folder(run: Run, name: str) -> Path:
    """Returns the folder of the search for a student's plan."""
    return run.directory / "search" / name
