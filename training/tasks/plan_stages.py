"""The stages in which plans are found or learned. Students that share a plan get it once.

Each stage reads what earlier stages left in the run's folder, and leaves its own files there
(training/tasks/run_folder.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from modeling.visual_plan import VisualPlan
from training.distillation.datasets import calibration_batches
from training.distillation.students import dense_processor, dense_student, limited_config
from training.gates.learning import budgeted_gates, hardened_plan, learn_gates
from training.measure.calibration import Calibration, calibrate
from training.measure.costs import fractions
from training.measure.latency import measure_latency
from training.planners.tools.search import Search, search_tasks
from training.ranks import OnAllRanks, led_by_rank_0
from training.recipe.gates import GateSettings
from training.recipe.student import CompareSettings
from training.run import Run, is_main_process
from training.tasks.race import refuse_dear_candidates
from training.tasks.run_folder import (
    CALIBRATION,
    LATENCY,
    data_folder,
    gates_folder,
    load_latency,
    plan_path,
    search_folder,
)
from training.tasks.shared_plans import (
    bounds_latency,
    plan_key,
    reads_statistics,
    reads_unit_kl,
    recipe_of_student,
    students_to_learn,
    with_own_plans,
)
from training.tasks.student_stages import training_data


def measure_dense(run: Run) -> dict:
    """Writes the statistics and timings that plans are found from, and the plans that learning starts from.

    Raises:
        UserError: a budget cannot be met, or learning cannot start from a plan.
    """
    recipe = run.recipe
    model, processor = dense_student(recipe.model), dense_processor(recipe.model)
    batches = calibration_batches(recipe, processor, data_folder(run)) if reads_statistics(recipe) else []

    def story(on_all_ranks: OnAllRanks) -> dict:
        if bounds_latency(recipe):
            measure_latency(model).save(run.directory / LATENCY)
        if not reads_statistics(recipe):
            return {}
        folder = run.directory / "calibration"
        statistics = calibrate(model, batches, folder, on_all_ranks, with_unit_kl=reads_unit_kl(recipe))
        statistics.save(run.directory / CALIBRATION)
        _find_starts(run, Search(model, batches, statistics, load_latency(run), ranks=on_all_ranks))
        return {"read_share": statistics.read_share.tolist()}

    return led_by_rank_0(search_tasks(model, batches), story) or {}


def _find_starts(run: Run, search: Search) -> None:
    """Writes the plans that learning starts from. Raises UserError if learning cannot start from one."""
    recipe = run.recipe
    starts = {None: VisualPlan.dense(search.config.text_config.num_hidden_layers)}
    for student in students_to_learn(recipe):
        if student.plan.start not in starts:  # students with different seeds may share it
            folder = gates_folder(run, student.name) / "start.search"
            starts[student.plan.start] = student.plan.start.find(replace(search, folder=folder))
        start = starts[student.plan.start]
        start.save(gates_folder(run, student.name) / "start.json")
        # This only checks: a start or budget that learning would refuse is refused now, before any search.
        budgeted_gates(search.config, student.plan, search.calibration, start, search.latency)


def find_plans(run: Run) -> dict:
    """Writes the plans that are found, for students whose plan is not learned. Returns the costs of each plan."""
    model, processor = dense_student(run.recipe.model), dense_processor(run.recipe.model)
    batches = calibration_batches(run.recipe, processor, data_folder(run))

    def story(on_all_ranks: OnAllRanks) -> dict:
        statistics = Calibration.load(run.directory / CALIBRATION) if reads_statistics(run.recipe) else None
        search = Search(model, batches, statistics, load_latency(run), ranks=on_all_ranks)
        students = [one for one in with_own_plans(run.recipe) if not isinstance(one.plan, GateSettings)]
        costs = _save_plans(
            run, students, lambda student: student.plan.find(replace(search, folder=search_folder(run, student.name)))
        )
        refuse_dear_candidates(run)
        return costs

    return led_by_rank_0(search_tasks(model, batches), story) or {}


def learn_plans(run: Run) -> dict:
    """Trains gates and LoRA adapters for every plan that is learned. All processes execute it together."""
    recipe = run.recipe
    data = training_data(run)
    statistics = Calibration.load(run.directory / CALIBRATION)
    for student in students_to_learn(recipe):
        learn_gates(
            recipe_of_student(recipe, student),
            student.plan,
            statistics,
            load_latency(run),
            data.dataset,
            data.collator,
            gates_folder(run, student.name),
            data.validation,
        )
    return {}


def harden_plans(run: Run) -> dict:
    """Writes the plans that learned gates are hardened into. Returns the costs of each plan."""
    recipe = run.recipe
    batches = calibration_batches(recipe, dense_processor(recipe.model), data_folder(run))
    statistics = Calibration.load(run.directory / CALIBRATION)
    plans = {
        plan_key(student): hardened_plan(
            recipe_of_student(recipe, student),
            student.plan,
            statistics,
            load_latency(run),
            batches,
            gates_folder(run, student.name),
        )
        for student in students_to_learn(recipe)
    }
    if not is_main_process():
        return {}
    students = [student for student in with_own_plans(recipe) if isinstance(student.plan, GateSettings)]
    return _save_plans(run, students, lambda student: plans[plan_key(student)])


def _save_plans(run: Run, students: Sequence[CompareSettings], find: Callable[[CompareSettings], VisualPlan]) -> dict:
    """Finds and saves plans, and returns the costs of each student's plan, as shares of the dense model's.

    Args:
        find: finds the plan of a student. It is called once for students that share a plan.
    """
    config = limited_config(run.recipe.model)
    found: dict[str, VisualPlan] = {}
    costs = {}
    for student in students:
        key = plan_key(student)
        if key not in found:
            found[key] = find(student)
        found[key].save(plan_path(run, student.name))
        costs[student.name] = fractions(found[key], config)
    return costs
