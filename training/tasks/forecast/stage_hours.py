"""Estimates the hours of each stage: the FLOPs of its forward and backward passes, at an assumed FLOP/s.

A sample is one picture and the assumed number of text tokens (assumptions.py). FLOPs are those of convention D
(modeling/visual_flops.py) and of the output head at text tokens. Loading, reading of pictures, decoding of an answer's
few tokens, and waiting for the slowest process are left out, so an estimate is a lower bound for a device that reaches
the assumed FLOP/s.

A backward pass computes gradients of the layers' inputs, which costs as much as the forward pass, and gradients of
trained weights, which for adapters is little and for full fine-tuning as much again. Gradient checkpointing repeats the
forward pass.
"""

from dataclasses import dataclass

from transformers import PreTrainedConfig

from checkpoints.families import reference_images, vision_macs
from modeling.visual_flops import dense_cost, plan_cost
from training.recipe.data import DataSettings, SourceSettings
from training.recipe.gates import GateSettings
from training.recipe.student import CompareSettings, SparsifyRecipe, StudentRecipe
from training.recipe.training import TrainingSettings
from training.tasks.forecast.assumptions import Assumptions
from training.tasks.forecast.budget_costs import budget_costs
from training.tasks.forecast.sizes import Sizes
from training.tasks.shared_plans import (
    candidates,
    plan_key,
    races,
    reads_statistics,
    reads_unit_kl,
    students_to_learn,
    with_own_plans,
)

PLANS = 100
"""Plans that are tried in a search, for which its hours are given: how many it needs is seen in the search."""
ROWS = 10_000
"""Training rows for which hours are given, where their number is not known."""


@dataclass(frozen=True)
class Hours:
    """Hours of a stage, or of a part of it that is named in words."""

    value: float
    per: str = ""


def hours_by_stage(
    recipe: StudentRecipe, config: PreTrainedConfig, sizes: Sizes, assumed: Assumptions, processes: int
) -> dict[str, Hours]:
    """Returns the hours of every stage that takes long, by the stage's name.

    Raises:
        UserError: a plan does not fit the model.
    """
    cost = SampleCost(recipe, config, sizes)
    sample = cost.forward()
    samples, all_rows = recipe.calibration.num_samples, _rows(recipe.data.train, recipe.data) or assumed.rows
    rows, per_rows = (all_rows, "") if all_rows else (ROWS, f"per {ROWS:,} rows")
    questions = _questions(recipe.data)
    models = len(recipe.students) + (2 if isinstance(recipe, SparsifyRecipe) else 1)
    searches = {plan_key(one): one for one in with_own_plans(recipe) if not isinstance(one.plan, GateSettings)}
    searched = [student for student in searches.values() if student.plan.plan_of_config(config) is None]
    learned = students_to_learn(recipe)

    def stage(flops: float, per: str = "") -> Hours:
        return Hours(flops / (assumed.device_flops * processes) / 3600, per)

    def training(student: CompareSettings, settings: TrainingSettings, *, gates: bool) -> float:
        batch = settings.micro_batch_size * settings.gradient_accumulation_steps * processes
        count = settings.num_epochs * rows if settings.max_steps is None else settings.max_steps * batch
        return count * cost.step(student, gates=gates)

    def steps(count: int) -> TrainingSettings:
        return recipe.training.model_copy(update={"max_steps": count})

    distilled = sum(
        training(student, recipe.training_of(student), gates=False) for student in recipe.students if student.distil
    )
    gates = sum(training(student, steps(student.plan.steps), gates=True) for student in learned)
    raced = 0.0
    for student in races(recipe):
        own = (one for one in candidates(student).values() if isinstance(one.plan, GateSettings))
        raced += training(student, steps(student.plan.all_steps - sum(one.plan.steps for one in own)), gates=False)
        distilled -= training(student, steps(student.plan.last_step), gates=False)
    starting = {student.plan.start for student in learned if student.plan.start is not None}
    starting = [planner for planner in starting if planner.plan_of_config(config) is None]
    starts = stage(len(starting) * PLANS * samples * cost.answers()).value  # calibration finds them
    hardened = sum(student.plan.draws + 4 for student in learned)  # and the dense model, the gates, the best twice
    return {
        "calibrate": stage(samples * cost.calibration(), f"and {starts:.2f} per {PLANS} plans tried" if starts else ""),
        "plan": stage(len(searched) * PLANS * samples * cost.answers(), f"per {PLANS} plans tried" if searched else ""),
        "ask": stage(rows * sample, per_rows),
        "learn": stage(gates),
        "harden": stage(hardened * samples * cost.answers()),
        "race": stage(raced),
        "distil": stage(distilled, "" if recipe.training.max_steps else per_rows),
        "evaluate": stage((questions or ROWS) * models * sample, "" if questions else f"per {ROWS:,} questions"),
    }


class SampleCost:
    """FLOPs of one sample."""

    def __init__(self, recipe: StudentRecipe, config: PreTrainedConfig, sizes: Sizes):
        self._recipe, self._config, self._sizes = recipe, config, sizes
        self._images = reference_images(config)
        self._vision = 2 * vision_macs(config, self._images)
        self._head = 2 * sizes.text_tokens * sizes.decoder.hidden_size * sizes.vocabulary
        self._dense = dense_cost(sizes.decoder, self._images, sizes.text_tokens)

    def forward(self) -> float:
        """Returns the dense model's forward pass, with vision tower and head."""
        return self._dense.flops_prefill + self._head + self._vision

    def answers(self) -> float:
        """Returns the dense model's answers where pictures are encoded already."""
        return self._dense.flops_prefill + self._head

    def calibration(self) -> float:
        """Returns what calibration does on a sample (training/measure/calibration.py).

        The decoder runs once for statistics and once for answers. If a planner reads the answer KL without each unit,
        half of the decoder's layers run once more for each unit (statistics/unit_kl.py).
        """
        if not reads_statistics(self._recipe):
            return 0.0
        flops = 2 * (self._vision + self._dense.flops_prefill) + self._head
        if reads_unit_kl(self._recipe):
            units = self._sizes.decoder.num_layers * self._sizes.decoder.num_kv_heads
            flops += units * (self._dense.flops_prefill / 2 + self._head)
        return flops

    def decoder(self, student: CompareSettings) -> float:
        """Returns the student's decoder. Where its plan is not known, it is the most that the budget allows."""
        plan = student.plan.plan_of_same_cost(self._config)
        if plan is not None:
            return plan_cost(plan, self._sizes.decoder, self._images, self._sizes.text_tokens).flops_prefill
        dense = {"A": self._dense.macs_visual, "B": self._dense.flops_visual, "kv_bytes": 0}
        dense |= dict.fromkeys(("C", "D"), self._dense.flops_prefill)
        at_most = budget_costs(dense, student.plan.bound)["C"]
        return self._dense.flops_prefill if at_most is None else at_most

    def step(self, student: CompareSettings, *, gates: bool) -> float:
        """Returns the FLOPs of a sample in training.

        Args:
            gates: whether gates are learned. The student then computes all that the dense model does.
        """
        recipe, sizes = self._recipe, self._sizes
        lora = gates or recipe.lora is not None
        student_pass = (self._dense.flops_prefill if gates else self.decoder(student)) + self._head
        passes = 2 + (not lora) + recipe.training.gradient_checkpointing
        flops = passes * student_pass
        if lora:
            adapters = sizes.gate_adapters if gates else sizes.trained
            flops += (6 + 2 * recipe.training.gradient_checkpointing) * adapters * self._tokens
        if recipe.distillation.keep_answers:
            return flops
        if recipe.distillation.needs_teacher:
            flops += self._dense.flops_prefill + self._head
            # A model that is its own teacher encodes pictures once.
            flops += 0 if lora and recipe.model.teacher is None else self._vision
        return flops + self._vision

    @property
    def _tokens(self) -> int:
        return self._sizes.visual_tokens + self._sizes.text_tokens


def _questions(data: DataSettings) -> int | None:
    """Returns how many questions are asked. None if the recipe does not say."""
    counts = [_rows(data.rows_to_ask, data)]
    counts += [settings.num_questions for settings in data.benchmarks for _ in settings.benchmarks]
    return None if None in counts else sum(counts)


def _rows(sources: tuple[SourceSettings, ...], data: DataSettings) -> int | None:
    """Returns how many rows the sources give. None if the recipe does not say."""
    total = 0
    for source in sources:
        if source.num_samples is not None:
            total += source.num_samples
        elif source.is_of_world:
            total += round(data.world.splits[source.split].rows * (source.weight or 1))
        else:
            return None
    return total
