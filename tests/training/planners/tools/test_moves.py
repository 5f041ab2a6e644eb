"""Moves change what their names say, in the calibrated order. Closings never cost more, and openings never less."""

from modeling.layer_plan import LayerPlan
from modeling.visual_plan import VisualPlan
from tests.training.planners.tiny_calibration import NUM_LAYERS, NUM_NEURONS, NUM_UNITS, tiny_calibration, tiny_config
from training.measure.price import PlanPrice
from training.planners.tools.moves import Moves

CONFIG = tiny_config()
PRICE = PlanPrice(CONFIG)


def all_reachable(start: VisualPlan, step, limit: int = 400) -> list[VisualPlan]:
    """Returns the plans that steps lead to from a start, `limit` of them or a few more."""
    found, waiting = {start}, [start]
    while waiting and len(found) < limit:
        for _, plan in step(waiting.pop(0)):
            if plan not in found:
                found.add(plan)
                waiting.append(plan)
    return list(found)


def test_closings_never_cost_more_and_openings_never_less():
    moves = Moves(CONFIG, tiny_calibration())
    plans = all_reachable(moves.dense, moves.closings)
    assert len(plans) >= 400
    for plan in plans[::20]:
        assert all(PRICE(after) <= PRICE(plan) for _, after in moves.closings(plan))
        assert all(PRICE(after) >= PRICE(plan) for _, after in moves.openings(plan))


def test_every_listed_plan_fits_the_model_and_costs_the_same():
    moves = Moves(CONFIG, tiny_calibration())
    for plan in all_reachable(moves.dense, moves.closings):
        listed = moves.with_units(plan)
        listed.check(NUM_LAYERS, NUM_UNITS, NUM_NEURONS)
        assert PRICE(listed) == PRICE(plan)
        assert VisualPlan.from_dict(listed.to_dict()) == listed


def test_named_moves_of_a_dense_layer():
    moves = Moves(CONFIG, tiny_calibration())
    names = {name for (name, index), _ in moves.closings(moves.dense) if index == 1}
    assert names == {
        "stop attention",
        "stop ffn",
        "narrow ffn",
        "freeze",
        "blind",
        "idle",
        "shut unit",
        "shrink radius",
        "withdraw",
    }
    assert not list(moves.openings(moves.dense))
    idle = {
        name
        for (name, index), _ in moves.openings(moves.dense.replace(1, read=False, attend=False, ffn=0))
        if index == 1
    }
    assert idle == {"attend", "widen ffn", "whole ffn", "read"}


def test_the_most_important_units_and_neurons_stay():
    calibration = tiny_calibration()
    moves = Moves(CONFIG, calibration)
    listed = moves.with_units(moves.dense.replace(1, heads=1, ffn=NUM_NEURONS // 8))
    assert listed.layers[0] == LayerPlan()
    assert listed.layers[1].heads == (int(calibration.unit_kl[1].argmax()),)
    strongest = calibration.neuron_importance[1].topk(NUM_NEURONS // 8).indices
    assert listed.layers[1].ffn == tuple(sorted(strongest.tolist()))


def test_a_blind_tail_is_written_as_a_withdrawal():
    moves = Moves(CONFIG, tiny_calibration())
    (withdrawn,) = [plan for move, plan in moves.closings(moves.dense) if move == ("withdraw", 2)]
    assert [layer.tokens for layer in moves.with_units(withdrawn).layers] == [1.0, 1.0] + [0.0] * (NUM_LAYERS - 2)
    # A blind layer below one that is read stays a layer with tokens.
    assert moves.with_units(moves.dense.replace(1, read=False)).layers[1] == LayerPlan(read=False)


def test_radii_beyond_the_grid_are_no_moves():
    moves = Moves(CONFIG, tiny_calibration())
    ((_, narrower),) = [each for each in moves.closings(moves.dense) if each[0] == ("shrink radius", 0)]
    assert narrower.layers[0].radius == 2
