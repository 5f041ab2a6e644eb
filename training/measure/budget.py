"""What a plan may cost at most."""

from pydantic import Field, model_validator

from modeling.user_error import UserError
from training.schema import Strict

Share = Field(default=None, ge=0, le=1)


class Budget(Strict):
    """The most that a plan may spend of one thing, as a share of the stock model's cost.

    Costs are those of the prefill of one picture and 64 text tokens (`training.measure.price.PlanPrice`).
    """

    visual_flops: float | None = Share
    """FLOPs of visual tokens (convention B of modeling/visual_flops.py)."""
    model_flops: float | None = Share
    """FLOPs of the whole decoder (convention C)."""
    kv_bytes: float | None = Share
    """Keys and values that are held after the prefill."""
    latency: float | None = Share
    """Time of the decoder on this machine, as a table of timings predicts it (training/measure/latency.py)."""

    @model_validator(mode="after")
    def _one_bound(self):
        if sum(value is not None for value in vars(self).values()) != 1:
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}")
        return self

    @property
    def measure(self) -> str:
        """The name of the cost that is bounded."""
        return next(name for name, value in vars(self).items() if value is not None)

    @property
    def share(self) -> float:
        """The bound, in [0, 1]."""
        return getattr(self, self.measure)

    def refuse_below(self, price: float, least: str) -> None:
        """Raises UserError where the bound lies below `price`, that of the cheapest plan there is.

        Args:
            least: what the cheapest plan is, in words.
        """
        if self.share < price:
            raise UserError(
                f"plan.budget.{self.measure}: got {self.share:g}, allowed: {price:.4g} or more, the cost of {least}"
            )
