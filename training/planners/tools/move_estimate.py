"""Estimates the KL change of a move before it was tried, so that a search need not try all moves.

- A move that combines others changes the KL by about the sum of their changes.
- A narrower FFN or neighbourhood loses a share of what stopping it would lose. For small changes, the KL grows with the
  square of that share.
- Shutting units changes the KL by about the sum of what calibration measured for each unit alone.

The estimate that a search sees is a fraction of this. So a move with a good chance is tried at least once.
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
"""The fraction of the estimated KL change that a search sees."""

ESTIMATED_MOVES = frozenset({"freeze", "idle", "withdraw", "narrow ffn", "shrink radius", "shut unit"})
"""Names of the moves that can be estimated once all other moves have been tried."""


def optimistic_kl_change(
    move: Move, before: VisualPlan, after: VisualPlan, calibration: Calibration, kl_changes: Mapping[Move, float]
) -> float:
    """Returns an optimistic estimate of a closing move's KL change, in nats.

    Args:
        move: one of `ESTIMATED_MOVES`.
        before, after: the plan without and with the move. They count their units, as `Moves` does.
        kl_changes: measured KL changes, in nats. A move that is absent changes nothing, because the work that it would
            close is dead.
    """
    return OPTIMISM * _kl_change(move, before, after, calibration, kl_changes)


def _kl_change(
    move: Move, before: VisualPlan, after: VisualPlan, calibration: Calibration, kl_changes: Mapping[Move, float]
) -> float:
    """Returns the estimate by the rules at the top of this file."""
    name, index = move
    old, new = before.layers[index], after.layers[index]
    match name:
        case "freeze" | "idle":
            return sum(kl_changes.get((single, index), 0.0) for single in _single_moves(old, new))
        case "withdraw":
            return sum(
                kl_changes.get(("blind", later), 0.0)
                for later in range(index, len(before))
                if before.layers[later].read
            )
        case "narrow ffn":
            importance = calibration.neuron_importance[index].sort(descending=True).values
            lost_share = float(importance[new.ffn :].sum() / importance.sum())
            return lost_share**2 * kl_changes.get(("stop ffn", index), 0.0)
        case "shrink radius":
            lost_share = 1 - float(calibration.neighborhood[index, new.radius])
            return lost_share**2 * kl_changes.get(("stop attention", index), 0.0)
        case "shut unit":
            return float(calibration.unit_kl[index].sort(descending=True).values[new.heads : old.heads].sum())
    raise AssertionError(name)


def _single_moves(old: LayerPlan, new: LayerPlan) -> list[str]:
    """Returns the names of the single moves that together lead from the layer `old` to the layer `new`."""
    changed = {
        "stop attention": old.attend != new.attend,
        "stop ffn": old.ffn != new.ffn,
        "blind": old.read != new.read,
    }
    return [name for name, differs in changed.items() if differs]
