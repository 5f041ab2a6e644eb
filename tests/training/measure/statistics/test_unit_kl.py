"""The answer KL without each unit is that of the plan without the unit, to the last bit, and goes on after a kill."""

import pytest
import torch

import training.measure.calibration
from modeling.visual_plan import VisualPlan
from tests.tiny_student import tiny_batch, tiny_student
from training.measure.answer_kl import AnswerKL
from training.measure.calibration import UNIT_KL, calibrate
from training.measure.statistics import unit_kl

NUM_LAYERS = 4
BATCHES = [tiny_batch((1, 0, 2), seed=1), tiny_batch((0,), seed=2), tiny_batch((2, 1), seed=3, padding_side="left")]


@pytest.mark.parametrize("num_units", [1, 2, 4])
def test_equals_an_evaluation_of_each_plan(tmp_path, num_units):
    model, dense = tiny_student(NUM_LAYERS, num_units), VisualPlan.dense(NUM_LAYERS)
    model.set_visual_plan(dense.replace(1, ffn=0))
    answer_kl = AnswerKL(model, BATCHES)
    expected = [
        [answer_kl(dense.replace(layer, heads=tuple({*range(num_units)} - {unit}))) for unit in range(num_units)]
        for layer in range(NUM_LAYERS)
    ]
    found = calibrate(model, BATCHES, tmp_path).unit_kl
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=0)
    assert model.visual_plan == dense.replace(1, ffn=0)


def test_runs_each_layer_half_as_often():
    num_units, runs = 2, []
    model = tiny_student(NUM_LAYERS, num_units)
    for layer in model.model.language_model.layers:
        layer.register_forward_hook(lambda *_: runs.append(1))
    answers = unit_kl.OwnAnswers(model, [(0, BATCHES[0])])
    answers.prepare()
    runs.clear()
    unit_kl.own_unit_kl(answers, [0])
    assert len(runs) == num_units * NUM_LAYERS * (NUM_LAYERS + 1) / 2 + NUM_LAYERS


@pytest.mark.parametrize("is_torn", [False, True])
def test_goes_on_after_a_kill(tmp_path, monkeypatch, is_torn):
    model = tiny_student(NUM_LAYERS)
    whole = calibrate(model, BATCHES, tmp_path / "whole").unit_kl
    measure, asked = training.measure.calibration.own_unit_kl, []

    def killed_at_the_last(answers, numbers):
        asked.extend(numbers)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return measure(answers, numbers)

    monkeypatch.setattr(training.measure.calibration, "own_unit_kl", killed_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, BATCHES, tmp_path / "killed")
    if is_torn:
        journal = tmp_path / "killed" / UNIT_KL
        journal.write_bytes(journal.read_bytes()[:-3])
    again = calibrate(model, BATCHES, tmp_path / "killed").unit_kl
    assert asked == [0, 1, 2, *([1, 2] if is_torn else [2])]
    assert torch.equal(again, whole)
    asked.clear()
    model.lm_head.weight.data[0, 0] += 1
    assert not torch.equal(calibrate(model, BATCHES[:2], tmp_path / "killed").unit_kl, whole)
    assert asked == [0, 1], "another model is measured anew"


def test_is_measured_only_where_it_is_asked_for(tmp_path, monkeypatch):
    model = tiny_student(NUM_LAYERS)
    without = calibrate(model, BATCHES, tmp_path, with_unit_kl=False)
    assert without.unit_kl is None and not (tmp_path / UNIT_KL).exists()
    without.save(tmp_path / "without.safetensors")
    assert type(without).load(tmp_path / "without.safetensors").unit_kl is None
    # It is added to what was measured before.
    monkeypatch.setattr(training.measure.calibration, "own_statistics", None)
    added = calibrate(model, BATCHES, tmp_path)
    assert added.unit_kl.shape == (NUM_LAYERS, 2) and torch.equal(added.activity, without.activity)
