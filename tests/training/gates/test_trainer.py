"""Learning gates: the cost comes down to the budget, gates stay fp32, and a killed run continues."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from data.collator import Collator
from modeling.visual_plan import VisualPlan
from tests.tiny_student import single_samples, tiny_batch, tiny_student
from training.distillation.arguments import training_arguments
from training.distillation.callbacks import read_metrics
from training.distillation.lora import add_lora
from training.distillation.narrow_projections import put_narrow_projections
from training.gates.budgeted import BudgetedGates
from training.gates.start import base_plan, gates_at_start
from training.gates.trainer import GateTrainer
from training.measure.calibration import Calibration
from training.measure.price import PlanPrice
from training.recipe.distillation import DistillationSettings
from training.recipe.gates import GateSettings
from training.recipe.lora import LoraSettings
from training.recipe.training import TrainingSettings

COLLATOR = Collator(SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0)))
DATASET = [
    {name: value if name == "pixel_values" else value[0] for name, value in sample.items()}
    for sample in single_samples(tiny_batch((1, 0, 2, 1, 1, 0, 1, 2)))
]
DENSE = VisualPlan.dense(3)


def trainer(
    folder,
    steps=6,
    callbacks=(),
    dtype=torch.float32,
    share=0.2,
    cls=GateTrainer,
    dataset=DATASET,
    collator=COLLATOR,
    validation=None,
    **training,
) -> GateTrainer:
    settings = GateSettings(planner="gates", budget={"visual_flops": share}, steps=steps, ffn_blocks=4)
    values = {
        "max_steps": steps,
        "micro_batch_size": 4,
        "learning_rate": 1e-3,
        "warmup_ratio": 0.0,
        "lr_schedule": "constant_with_warmup",
        "precision": "float32",
        "deepspeed": None,
        "logging_steps": 1,
        "save_steps": 3,
        "report_to": (),
    }
    model = tiny_student().to(dtype)
    torch.manual_seed(3)
    statistics = Calibration(
        activity=torch.rand(2, 3, 2),
        neuron_importance=torch.rand(3, 24),
        neighborhood=torch.ones(3, 3),
        unit_kl=torch.rand(3, 2),
    )
    gates = gates_at_start(model.config, statistics, DENSE, settings)
    put_narrow_projections(model)
    return cls(
        model=add_lora(model, LoraSettings(rank=2, alpha=4)),
        gates=BudgetedGates(gates, base_plan(DENSE), PlanPrice(model.config, settings.budget.measure)),
        settings=settings,
        args=training_arguments(TrainingSettings(**values | training), folder, seed=5, name="gates"),
        train_dataset=dataset,
        data_collator=collator,
        distillation=DistillationSettings(cross_entropy_weight=0.5, forward_kl_weight=1.0),
        callbacks=list(callbacks),
        validation=validation,
    )


def all_parameters(one: GateTrainer) -> dict[str, torch.Tensor]:
    return dict((*one.model.named_parameters(), *one.gates.named_parameters()))


def trained(one: GateTrainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in all_parameters(one).items() if value.requires_grad}


@pytest.mark.slow
def test_the_expected_cost_comes_down_to_the_budget(tmp_path):
    one = trainer(tmp_path, steps=120)
    start = float(one.gates.expected_cost().detach())
    one.train()
    assert start > 0.6
    assert float(one.gates.expected_cost().detach()) == pytest.approx(0.2, rel=0.25)
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "cost" in row]
    targets = [row["target"] for row in rows]
    assert targets == sorted(targets, reverse=True) and targets[-1] == pytest.approx(0.2) == pytest.approx(targets[72])
    assert rows[0]["cost"] == pytest.approx(start, rel=1e-4)
    history = [json.loads(line) for line in (tmp_path / "gates.jsonl").read_text().splitlines()]
    assert (
        len(history) == 120 and history[0].keys() == {"step", "read", "attend", "ffn"} and len(history[0]["read"]) == 3
    )
    served = [sum(row["read"] + row["attend"] + row["ffn"]) for row in history]
    assert served[-1] < served[0]
    assert all(row["attend"][-1] == row["ffn"][-1] == 0 for row in history), "nothing reads what the last layer writes"


def test_all_that_learns_learns_and_nothing_else(tmp_path):
    one = trainer(tmp_path, steps=3)
    before = {name: value.clone() for name, value in all_parameters(one).items()}
    one.train()
    moved = {name for name, value in all_parameters(one).items() if not torch.equal(value, before[name])}
    assert moved == set(trained(one))
    assert {"lagrangian.linear", "gates.log_alpha.read"} < moved and any("lora_B" in name for name in moved)
    assert not any("base_layer" in name or "vision_tower" in name for name in moved)


def test_gates_are_fp32_whatever_the_model(tmp_path):
    one = trainer(tmp_path, steps=2, dtype=torch.bfloat16, precision="bfloat16")
    one.train()
    assert {parameter.dtype for parameter in one.gates.parameters()} == {torch.float32}


def test_gradient_checkpointing_changes_nothing(tmp_path):
    """The backward pass computes activations again, under the same draw of the gates."""
    kept, again = (trainer(tmp_path / str(on), steps=3, gradient_checkpointing=on) for on in (False, True))
    for one in (kept, again):
        torch.manual_seed(0)  # the same draws of the gates
        one.train()
    assert again.model.get_base_model().model.language_model.gradient_checkpointing
    expected = trained(kept)
    for name, value in trained(again).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_multipliers_climb_while_the_cost_is_above_its_target(tmp_path):
    one = trainer(tmp_path, steps=4)
    one.train()
    assert one.gates.lagrangian.quadratic.item() > 1.1 and one.gates.lagrangian.linear.item() > 0.01


def test_a_target_that_need_not_fall_rests_from_the_first_step(tmp_path):
    one = trainer(tmp_path, steps=1, share=1.0)
    one.train()
    assert one.gates.lagrangian.linear.item() != 0


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise KeyboardInterrupt


def test_a_killed_run_continues_with_the_same_gates(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "killed", callbacks=[Kill()]).train()
    resumed = trainer(tmp_path / "killed")
    resumed.train()
    for name, value in trained(whole).items():
        torch.testing.assert_close(trained(resumed)[name], value, rtol=1e-5, atol=1e-6, msg=name)
    files = [(tmp_path / name / "gates.jsonl").read_text() for name in ("whole", "killed")]
    assert files[0] == files[1]


def test_accumulated_micro_batches_share_one_lagrangian(tmp_path):
    """The multipliers' gradient is the excess, however many micro-batches a step has."""
    found = []
    for accumulation in (1, 2):
        one = trainer(
            tmp_path / str(accumulation), steps=1, max_grad_norm=1e9,
            micro_batch_size=8 // accumulation, gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        one.gates_optimizer.register_step_pre_hook(
            lambda optimizer, *_: found.append(float(optimizer.param_groups[1]["params"][0].grad))
        )
        one.train()
    assert found[0] == pytest.approx(found[1], rel=1e-5, abs=1e-7)
