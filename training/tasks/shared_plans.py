"""What the plans of a recipe's students need, and which students share a plan."""

from training.recipe.gates import GateSettings
from training.recipe.race import RaceSettings
from training.recipe.student import CompareSettings, StudentRecipe


def reads_statistics(recipe: StudentRecipe) -> bool:
    """Returns whether any plan is found from the dense model's statistics."""
    return any(student.plan.needs_statistics for student in recipe.students)


def reads_unit_kl(recipe: StudentRecipe) -> bool:
    """Returns whether any plan is found from the answer KL without each unit."""
    return any(student.plan.needs_unit_kl for student in recipe.students)


def bounds_latency(recipe: StudentRecipe) -> bool:
    """Returns whether any budget bounds latency."""
    return any(bound.measure == "latency" for student in recipe.students for bound in student.plan.bounds)


def races(recipe: StudentRecipe) -> list[CompareSettings]:
    """Returns the students whose plans are the winners of races. Of students that share a plan, it returns only the
    first that is distilled."""
    found: dict[str, CompareSettings] = {}
    for student in recipe.students:
        if isinstance(student.plan, RaceSettings) and student.distil:
            found.setdefault(plan_key(student), student)
    return list(found.values())


def candidates(student: CompareSettings) -> dict[str, CompareSettings]:
    """Returns the candidates of a student's race by their names, each as a student."""
    return {
        name: student.model_copy(update={"name": f"{student.name}/race/{name}", "plan": plan})
        for name, plan in student.plan.candidates.items()
    }


def with_own_plans(recipe: StudentRecipe) -> list[CompareSettings]:
    """Returns the students whose plans are found or learned. In the place of a race stand its candidates."""
    students = [student for student in recipe.students if not isinstance(student.plan, RaceSettings)]
    return students + [candidate for student in races(recipe) for candidate in candidates(student).values()]


def students_to_learn(recipe: StudentRecipe) -> list[CompareSettings]:
    """Returns the students whose plans are learned. Of students that share a plan, it returns only the first."""
    found: dict[str, CompareSettings] = {}
    for student in with_own_plans(recipe):
        if isinstance(student.plan, GateSettings):
            found.setdefault(plan_key(student), student)
    return list(found.values())


def plan_key(student: CompareSettings) -> str:
    """Returns a key that is the same for students that have the same plan."""
    seed = student.seed if isinstance(student.plan, GateSettings | RaceSettings) else None
    return f"{student.plan.model_dump_json()} {seed}"


def name_of_learned_plan(recipe: StudentRecipe, student: CompareSettings) -> str:
    """Returns the name of the first student that has the same learned plan. Files about the plan have this name."""
    return next(first.name for first in students_to_learn(recipe) if plan_key(first) == plan_key(student))


def recipe_of_student(recipe: StudentRecipe, student: CompareSettings) -> StudentRecipe:
    """Returns the recipe with the student's own seed and training."""
    seed = recipe.seed if student.seed is None else student.seed
    return recipe.model_copy(update={"training": recipe.training_of(student), "seed": seed})
