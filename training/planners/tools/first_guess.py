"""What a move may cost before it was ever tried, so that a search need not try them all.

Moves made of others cost about the sum of their parts. A narrower FFN or neighbourhood loses a share of what stopping it
would lose; for small changes the KL grows with the square of that share. Shutting units costs about what calibration
measured for each alone. A guess is a fraction of that, so that a move worth having is tried at least once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from modeling.layer_plan import LayerPlan
from modeling.visual_plan import VisualPlan
from training.planners.tools.moves import Move

if TYPE_CHECKING:
    from training.measure.calibration import Calibration

OPTIMISM = 0.25

GUESSED = frozenset({"freeze", "idle", "withdraw", "narrow ffn", "shrink radius", "shut unit"})
"""Names of the moves that can be guessed once all others have been tried."""


def first_guess(
    move: Move, before: VisualPlan, after: VisualPlan, calibration: Calibration, known: Mapping[Move, float]
) -> float:
    """Optimistic estimate of a closing move's KL change.

    Args:
        before, after: the plan without and with the move; plans that count their units (`Moves`).
        known: measured KL changes; a move that is absent saves nothing, as what it would close is dead.
    """
    return OPTIMISM * _estimate(move, before, after, calibration, known)


def _estimate(move, before, after, calibration, known) -> float:
    name, index = move
    old, new = before.layers[index], after.layers[index]
    match name:
        case "freeze" | "idle":
            return sum(known.get((part, index), 0.0) for part in _parts(old, new))
        case "withdraw":
            return sum(
                known.get(("blind", later), 0.0) for later in range(index, len(before)) if before.layers[later].read
            )
        case "narrow ffn":
            importance = calibration.neuron_importance[index].sort(descending=True).values
            lost = float(importance[new.ffn :].sum() / importance.sum())
            return lost**2 * known.get(("stop ffn", index), 0.0)
        case "shrink radius":
            lost = 1 - float(calibration.neighborhood[index, new.radius])
            return lost**2 * known.get(("stop attention", index), 0.0)
        case "shut unit":
            return float(calibration.unit_kl[index].sort(descending=True).values[new.heads : old.heads].sum())
    raise AssertionError(name)


def _parts(old: LayerPlan, new: LayerPlan) -> list[str]:
    """The single moves that together lead from one state of a layer to the other."""
    changed = {
        "stop attention": old.attend != new.attend,
        "stop ffn": old.ffn != new.ffn,
        "blind": old.read != new.read,
    }
    return [name for name, differs in changed.items() if differs]
