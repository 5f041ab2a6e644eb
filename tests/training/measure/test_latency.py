"""Predicted latency equals the timings where there are any, is linear in between, and has gradients."""

import pytest
import torch

from modeling.visual_flops import Work
from modeling.visual_plan import VisualPlan
from tests.tiny_student import tiny_student
from tests.training.measure.test_price import BASES, CONFIG, SHAPES, SIZES, gates, states
from training.measure.latency import LatencyTable, measure_latency
from training.measure.price import PlanPrice

TABLE = LatencyTable(
    dense=10.0,
    text=2.0,
    keys=((0, 0.0), (1, 0.5), (2, 0.7)),
    queries=((0, 0.0), (1, 0.3), (2, 0.6)),
    neurons=((0, 0.0), (4, 0.2), (10, 1.4)),
)


@pytest.mark.parametrize(
    "work, seconds",
    [
        (Work(0, 0, 0, 0), 0.0),
        (Work(4, 1, 0, 1), 0.7),
        (Work(10, 2, 2, 2), 2.7),
        (Work(7, 1.5, 0.5, 0), 0.8 + 0.6 + 0.15),
        (Work(torch.tensor(7.0), torch.tensor(1.5), torch.tensor(0.5), 0), 1.55),
    ],
)
def test_seconds_are_those_timed_and_linear_between(work, seconds):
    assert float(TABLE.share([TABLE.layer_seconds(one, 1.0) for one in (work, Work(0, 0, 0, 0))])) == pytest.approx(
        (2.0 + seconds) / 10
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_hard_plan_costs_what_its_gates_are_expected_to(seed):
    cost = PlanPrice(CONFIG, "latency", TABLE)
    opened = states(seed)
    expected = cost.expected({name: value.double() for name, value in opened.items()}, SIZES, BASES["dense"])
    assert float(expected) == pytest.approx(cost(gates().plan(opened, BASES["dense"])))


def test_expected_latency_has_gradients():
    cost = PlanPrice(CONFIG, "latency", TABLE)
    generator = torch.Generator().manual_seed(1)
    values = [
        (0.2 + 0.2 * torch.rand(shape, generator=generator, dtype=torch.double)).requires_grad_()
        for shape in SHAPES.values()
    ]
    assert torch.autograd.gradcheck(
        lambda *given: cost.expected(dict(zip(SHAPES, given, strict=True)), SIZES, BASES["dense"]), values
    )


def test_a_table_is_taken_and_kept(tmp_path):
    model = tiny_student(num_layers=3, num_kv_heads=4)
    table = measure_latency(model)
    assert model.visual_plan == VisualPlan.dense(3), "the plan in force is restored"
    assert [count for count, _ in table.keys] == [0, 1, 2, 3, 4]
    assert [count for count, _ in table.neurons] == [0, 6, 12, 18, 24]
    for pairs in (table.keys, table.queries, table.neurons):
        seconds = [value for _, value in pairs]
        assert seconds[0] == 0 and seconds == sorted(seconds), "doing more never takes less time"
    assert table.text > 0 and table.dense > 0
    table.save(tmp_path / "latency.json")
    assert LatencyTable.load(tmp_path / "latency.json") == table
