"""First guesses are a fraction of what the parts cost."""

import pytest

from tests.training.planners.tiny_calibration import NUM_NEURONS, NUM_UNITS, tiny_calibration, tiny_config
from training.planners.tools.first_guess import GUESSED, OPTIMISM, first_guess
from training.planners.tools.moves import Moves

CALIBRATION = tiny_calibration()
MOVES = Moves(tiny_config(), CALIBRATION)
KNOWN = {("stop attention", 3): 0.1, ("stop ffn", 3): 0.2, ("blind", 3): 0.4, ("blind", 5): 0.8}


def guess(name: str, plan=MOVES.dense) -> float:
    after = dict(MOVES.closings(plan))[(name, 3)]
    return first_guess((name, 3), plan, after, CALIBRATION, KNOWN) / OPTIMISM


def test_composites_are_the_sum_of_the_parts_still_open():
    assert guess("freeze") == pytest.approx(0.3)
    assert guess("idle") == pytest.approx(0.7)
    assert guess("idle", MOVES.dense.replace(3, attend=False)) == pytest.approx(0.6)
    # Layers whose blinding was never worth measuring are dead and cost nothing.
    assert guess("withdraw") == pytest.approx(1.2)
    assert guess("withdraw", MOVES.dense.replace(5, read=False)) == pytest.approx(0.4)


def test_narrowing_goes_with_the_square_of_what_is_lost():
    importance = CALIBRATION.neuron_importance[3].sort().values
    lost = float(importance[: NUM_NEURONS // 2].sum() / importance.sum())
    assert guess("narrow ffn") == pytest.approx(0.2 * lost**2)
    assert guess("shrink radius") == pytest.approx(0.1 * (1 - float(CALIBRATION.neighborhood[3, 2])) ** 2)


def test_units_cost_what_calibration_measured():
    least = CALIBRATION.unit_kl[3].sort().values
    assert guess("shut unit") == pytest.approx(float(least[0]))
    assert guess("shut unit", MOVES.dense.replace(3, heads=NUM_UNITS - 1)) == pytest.approx(float(least[1]))


def test_every_closing_is_guessed_or_tried():
    names = {name for (name, _), _ in MOVES.closings(MOVES.dense)}
    assert names - GUESSED == {"stop attention", "stop ffn", "blind"}
