"""The most that a plan may cost, where weights or data decide the plan."""

from training.measure.budget import Budget


def budget_costs(dense: dict, budget: Budget | None) -> dict:
    """Returns the most that a plan may cost in each convention, or None where the budget sets no limit.

    It assumes that only visual work is saved, and nothing of what text does with visual tokens.

    Args:
        dense: costs of the dense model.
        budget: the budget; None if the plan has none.
    """
    bounds = budget.model_dump(exclude_none=True) if budget else {}
    at_most = dict.fromkeys(dense)
    if "visual_flops" in bounds:
        at_most |= {name: bounds["visual_flops"] * dense[name] for name in ("A", "B")}
        saved = dense["B"] - at_most["B"]
        at_most |= {name: dense[name] - saved for name in ("C", "D")}
    if "model_flops" in bounds:
        saved = (1 - bounds["model_flops"]) * dense["C"]
        at_most |= {name: dense[name] - saved for name in ("C", "D")}
    if "kv_bytes" in bounds:
        at_most["kv_bytes"] = bounds["kv_bytes"] * dense["kv_bytes"]
    return at_most
