"""The FLOPs that a forecast counts for a step of training, against those that torch counts while one is executed."""

from functools import cache

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.training.tasks.forecast.big_enough import IMAGE, SIDE, batch, model, recipe, sizes
from training.distillation.lora import add_lora
from training.recipe.file import RECIPES
from training.tasks.forecast import stage_hours
from training.tasks.forecast.assumptions import Assumptions
from training.tasks.forecast.stage_hours import Hours, SampleCost, hours_by_stage


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    monkeypatch.setattr(stage_hours, "reference_images", lambda config: (((SIDE, SIDE),),))


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_step_of_a_dense_student(lora, checkpointing):
    settings = recipe(
        "lora={rank: 8, alpha: 8}" if lora else "lora=null",
        f"training.gradient_checkpointing={str(checkpointing).lower()}",
        "plan={planner: yopo, budget: {visual_flops: 1.0}}",
    )
    student = model()
    student.set_attn_implementation("eager")  # on a CPU torch does not count fused attention
    student.vision_tower.requires_grad_(False)
    if lora:
        student = add_lora(student, settings.lora)
    student.train()
    if checkpointing:
        student.gradient_checkpointing_enable()
    base = student.get_base_model() if lora else student
    expected = SampleCost(settings, base.config, sizes(settings, student))
    inputs = batch(2)
    answers = inputs["input_ids"] != IMAGE
    encoded = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with FlopCounterMode(display=False) as counted:
        with torch.no_grad():
            pictures = base.encode_pictures({"pixel_values": inputs["pixel_values"]}) if lora else {}
            given = pictures or {"pixel_values": inputs["pixel_values"]}
            base(**encoded, **given, logits_mask=answers, use_cache=False)  # the teacher
        student(**encoded, **given, logits_mask=answers, use_cache=False).logits.sum().backward()
    (own, *_) = settings.students
    counts = 2 * expected.step(own, gates=False)
    assert counted.get_total_flops() == pytest.approx(counts, rel=0.1)


DENSE = cache(model)


def hours(*overrides: str, processes: int = 1, **assumed) -> dict[str, Hours]:
    settings = recipe("lora=null", *overrides)
    dense = DENSE()
    return hours_by_stage(settings, dense.config, sizes(settings, dense), Assumptions(**assumed), processes)


def test_hours_follow_devices_samples_and_steps():
    base = hours()
    assert hours(device_flops=8e14)["evaluate"].value == pytest.approx(base["evaluate"].value / 2)
    assert hours(processes=2)["evaluate"].value == pytest.approx(base["evaluate"].value / 2)
    # A process has its micro-batch, however many there are.
    assert hours(processes=2)["distil"].value == pytest.approx(base["distil"].value)
    assert hours("training.max_steps=6")["distil"].value == pytest.approx(2 * base["distil"].value)
    assert hours("calibration.num_samples=8")["calibrate"].value == pytest.approx(2 * base["calibrate"].value)
    assert base["distil"].per == base["evaluate"].per == ""
    assert base["plan"].per == "per 100 plans tried"


def test_rows_that_no_recipe_gives_are_asked_for():
    source = ("data.train=[{path: rows.json, images: images}]", "training.max_steps=null", "training.num_epochs=1")
    unknown, known = hours(*source), hours(*source, rows=20_000)
    assert unknown["distil"].per == "per 10,000 rows" and known["distil"].per == ""
    assert known["distil"].value == pytest.approx(2 * unknown["distil"].value)
    drawn = hours("data.train=[{path: rows.json, images: images, num_samples: 20000}]", *source[1:])
    assert drawn["distil"] == known["distil"]


def test_learning_and_hardening_take_their_steps_and_draws():
    plan = "plan={planner: gates, budget: {visual_flops: 0.3}, steps: 2, draws: 6}"
    learned, more = hours(plan), hours(plan.replace("draws: 6", "draws: 16"))
    assert learned["learn"].value > 0
    assert more["harden"].value == pytest.approx(2 * learned["harden"].value)
    assert hours()["learn"].value == hours()["harden"].value == 0


def test_a_race_takes_its_further_steps():
    """Three candidates take one step each, two of them another, and the winner goes on to the sixth."""
    yopo = "{planner: yopo, budget: {visual_flops: 0.5}}"
    plain = hours(f"plan={yopo}", "training.max_steps=6", "compare=[]")
    race = f"planner: race, budget: {{visual_flops: 0.5}}, steps: 1, candidates: {{a: {yopo}, b: {yopo}, c: {yopo}}}"
    raced = hours(f"plan={{{race}}}", "training.max_steps=6", "compare=[]", "validation={num_samples: 1, steps: 1}")
    step = plain["distil"].value / 6
    assert plain["race"].value == 0
    assert raced["race"].value == pytest.approx(5 * step, rel=0.05)  # at the most that the budget allows
    assert raced["distil"].value == pytest.approx(4 * step, rel=0.05)
