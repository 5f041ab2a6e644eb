"""The estimate of a move is a fraction of what its single moves cost."""

import pytest

from tests.training.planners.tiny_calibration import NUM_NEURONS, NUM_UNITS, tiny_calibration, tiny_config
from training.planners.tools.move_estimate import ESTIMATED_MOVES, OPTIMISM, optimistic_kl_change
from training.planners.tools.moves import Moves

CALIBRATION = tiny_calibration()
MOVES = Moves(tiny_config(), CALIBRATION)
KL_CHANGES = {("stop attention", 3): 0.1, ("stop ffn", 3): 0.2, ("blind", 3): 0.4, ("blind", 5): 0.8}


def estimate(name: str, plan=MOVES.dense) -> float:
    after = dict(MOVES.closings(plan))[(name, 3)]
    return optimistic_kl_change((name, 3), plan, after, CALIBRATION, KL_CHANGES) / OPTIMISM


def test_combined_moves_are_the_sum_of_the_single_moves_still_open():
    assert estimate("freeze") == pytest.approx(0.3)
    assert estimate("idle") == pytest.approx(0.7)
    assert estimate("idle", MOVES.dense.replace(3, attend=False)) == pytest.approx(0.6)
    # Layers whose blinding was never worth measuring are dead and cost nothing.
    assert estimate("withdraw") == pytest.approx(1.2)
    assert estimate("withdraw", MOVES.dense.replace(5, read=False)) == pytest.approx(0.4)


def test_narrowing_goes_with_the_square_of_what_is_lost():
    importance = CALIBRATION.neuron_importance[3].sort().values
    lost = float(importance[: NUM_NEURONS // 2].sum() / importance.sum())
    assert estimate("narrow ffn") == pytest.approx(0.2 * lost**2)
    assert estimate("shrink radius") == pytest.approx(0.1 * (1 - float(CALIBRATION.neighborhood[3, 2])) ** 2)


def test_units_cost_what_calibration_measured():
    least = CALIBRATION.unit_kl[3].sort().values
    assert estimate("shut unit") == pytest.approx(float(least[0]))
    assert estimate("shut unit", MOVES.dense.replace(3, heads=NUM_UNITS - 1)) == pytest.approx(float(least[1]))


def test_every_closing_is_estimated_or_tried():
    names = {name for (name, _), _ in MOVES.closings(MOVES.dense)}
    assert names - ESTIMATED_MOVES == {"stop attention", "stop ffn", "blind"}
