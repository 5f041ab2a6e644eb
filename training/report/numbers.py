"""Numbers as people read them, and the names of the costs that are counted."""

from checkpoints.card import CONVENTIONS

COST_LABELS = {**dict(zip("ABCD", CONVENTIONS, strict=True)), "kv_bytes": "key/value bytes"}
"""Key of a cost in a cost sheet (`training.measure.costs.cost_sheet`) -> its name."""


def percent(share: float | None) -> str:
    """Returns a share in percent with one decimal, or a dash for None."""
    return "–" if share is None else f"{100 * share:.1f} %"


def quantity(value: float) -> str:
    """Returns a count with three digits and an SI prefix."""
    for prefix in ("", " k", " M", " G"):
        if value < 1000:
            return f"{value:.3g}{prefix}"
        value /= 1000
    return f"{value:.3g} T"
