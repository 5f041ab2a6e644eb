"""Learns a plan: trains gates together with LoRA adapters, saves both, and hardens the gates into a plan.

The folder of a learned plan holds:

    start.json            the plan that learning starts from
    start.search/         what the search for that plan measured, if it was searched
    weights/              adapters, and in gates.safetensors gates and multipliers, after training
    trainer/              metrics.jsonl and gates.jsonl
    hardening.json        the cost of the hard plan and its answer KL, and the same under the soft gates
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, set_seed

from data.collator import Collator
from modeling.visual_plan import VisualPlan
from training.distillation.arguments import training_arguments
from training.distillation.lora import adapters_off, add_lora
from training.distillation.monitoring.validation import Validation
from training.distillation.narrow_projections import put_narrow_projections
from training.distillation.students import is_trained, train_and_save, untrained_student
from training.files import reading, write_json
from training.gates.budgeted import BudgetedGates
from training.gates.hardening import harden
from training.gates.start import base_plan, check_budget, gates_at_start
from training.gates.trainer import GATES_FILE, GateTrainer
from training.measure.answer_kl import AnswerKL, OwnAnswers, mean_distance
from training.measure.calibration import Calibration
from training.measure.latency import LatencyTable
from training.measure.price import PlanPrice
from training.ranks import OnAllRanks, in_order, led_by_rank_0, own_share
from training.recipe.gates import GateSettings
from training.recipe.lora import LoraSettings
from training.recipe.student import StudentRecipe
from training.run import device

DEFAULT_LORA = LoraSettings(rank=16, alpha=32)
"""The adapters that are trained together with gates if the recipe asks for full fine-tuning of students."""
LEARN_AGAIN = "delete weights/ and the results of `learn` and the stages after it in stages/, and they are done again"
"""What can be done about damaged weights."""


def budgeted_gates(
    config: PreTrainedConfig,
    settings: GateSettings,
    calibration: Calibration,
    start: VisualPlan,
    latency: LatencyTable | None,
) -> BudgetedGates:
    """Returns the gates that learning begins with, on the CPU.

    Args:
        config: the model's config.
        calibration: statistics of the dense model.
        start: the plan whose gates are open at first.
        latency: timings of this machine; None unless the budget bounds latency.

    Raises:
        UserError: as `gates_at_start` and `check_budget`.
    """
    base = base_plan(start)
    gates = gates_at_start(config, calibration, start, settings)
    price = PlanPrice(config, settings.budget.measure, latency)
    check_budget(gates, base, price, settings.budget)
    return BudgetedGates(gates, base, price)


def _student_with_adapters(recipe: StudentRecipe, start: VisualPlan) -> PeftModel:
    """Returns the dense model with fresh adapters, on the CPU."""
    student = untrained_student(recipe.model, base_plan(start))
    put_narrow_projections(student)
    return add_lora(student, recipe.lora or DEFAULT_LORA)


def learn_gates(
    recipe: StudentRecipe,
    settings: GateSettings,
    calibration: Calibration,
    latency: LatencyTable | None,
    dataset: Dataset,
    collator: Collator,
    folder: Path,
    validation: Validation | None = None,
) -> None:
    """Trains gates and adapters together, unless `folder` has their weights already. Every process calls this.

    It reads start.json in `folder`, and writes weights/ and trainer/.

    Args:
        recipe: the recipe, with the student's own seed.
        calibration: statistics of the dense model.
        latency: timings of this machine; None unless the budget bounds latency.
        dataset: the training data, perhaps with the teacher's answers.
        collator: makes batches of its samples.
        folder: folder of the learned plan.
        validation: held-out samples that are looked at meanwhile, if any.

    Raises:
        UserError: as `budgeted_gates` and `DistillationTrainer`.
    """
    if is_trained(folder):
        return
    set_seed(recipe.seed)
    training = recipe.training.model_copy(
        update={
            "max_steps": settings.steps,
            "num_epochs": None,
            "lr_schedule": "constant_with_warmup",
        }
    )
    start = VisualPlan.load(folder / "start.json")
    # The model is loaded before the training arguments are made, as in `train_student`.
    student = _student_with_adapters(recipe, start)
    trainer = GateTrainer(
        model=student,
        gates=budgeted_gates(student.config, settings, calibration, start, latency),
        args=training_arguments(
            training, folder / "trainer", recipe.seed, f"{recipe.name}/gates of {folder.name}", recipe
        ),
        train_dataset=dataset,
        data_collator=collator,
        validation=validation,
        distillation=recipe.distillation,
        settings=settings,
    )
    train_and_save(trainer, folder)


def hardened_plan(
    recipe: StudentRecipe,
    settings: GateSettings,
    calibration: Calibration,
    latency: LatencyTable | None,
    batches: Sequence[dict],
    folder: Path,
) -> VisualPlan | None:
    """Returns the plan that the gates in `folder` are hardened into, and writes hardening.json there.

    Every process calls this, and measures its share of the batches. Only rank 0 gets the plan, and the others None.

    Arguments that are not explained here are those of `learn_gates`.

    Args:
        batches: calibration batches, on which plans are compared.
    """
    start = VisualPlan.load(folder / "start.json")
    student = _student_with_adapters(recipe, start)
    outcome = set_peft_model_state_dict(student, learned_adapters(folder))
    assert not outcome.unexpected_keys, outcome.unexpected_keys[:3]
    learned = budgeted_gates(student.config, settings, calibration, start, latency)
    with reading(folder / "weights" / GATES_FILE, LEARN_AGAIN):
        learned.load_state_dict(load_file(folder / "weights" / GATES_FILE))
    student.to(device()).eval()
    learned.to(device()).eval()
    base, model = learned.base, student.get_base_model()
    own = OwnAnswers(model, own_share(batches))
    with adapters_off(student):
        own.prepare()  # the dense model's own answers
    student.merge_adapter()
    soft_gates, expected_cost = learned(), learned.expected_cost().item()
    gates = learned.gates.cpu()

    def story(on_all_ranks: OnAllRanks) -> VisualPlan:
        answer_kl = AnswerKL(model, batches, on_all_ranks)
        soft = mean_distance(in_order(on_all_ranks("soft")))
        plan = harden(gates, base, learned.price, settings, answer_kl, recipe.seed)
        cost = learned.price(plan)
        write_json(
            folder / "hardening.json",
            {
                "budget": settings.budget.model_dump(exclude_none=True),
                "expected_cost": expected_cost,
                "cost": cost,
                "unused_share_of_budget": 1 - cost / settings.budget.share,
                "soft": soft,
                "hard": answer_kl.distance(plan),
            },
        )
        return plan

    return led_by_rank_0({**own.tasks, "soft": lambda: own.divergences(base, soft_gates)}, story)


def learned_adapters(folder: Path) -> dict[str, torch.Tensor]:
    """Returns the adapters that were learned together with the gates in `folder`.

    They are adapters of the dense model, named as by `peft.get_peft_model_state_dict`.
    """
    path = folder / "weights" / "adapter_model.safetensors"
    with reading(path, LEARN_AGAIN):
        return load_file(path)
