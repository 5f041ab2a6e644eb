"""The budget of a plan: the most that it may cost."""

from pydantic import Field, model_validator

from modeling.user_error import UserError
from training.schema import Strict


class Budget(Strict):
    """The most that a plan may cost, in one of four measures. Exactly one of them is given.

    Each is a share of the dense model's cost, from 0 to 1. Costs are those of the prefill of one picture and 64 text
    tokens (`training.measure.price.PlanPrice`).
    """

    visual_flops: float | None = Field(default=None, ge=0, le=1)
    """Largest share of the stock model's FLOPs on visual tokens (convention B of modeling/visual_flops.py). Null:
    another measure is bounded."""
    model_flops: float | None = Field(default=None, ge=0, le=1)
    """Largest share of the stock decoder's FLOPs in the prefill (convention C of modeling/visual_flops.py). Null:
    another measure is bounded."""
    kv_bytes: float | None = Field(default=None, ge=0, le=1)
    """Largest share of the bytes of keys and values that the stock model holds after the prefill. Null: another
    measure is bounded."""
    latency: float | None = Field(default=None, ge=0, le=1)
    """Largest share of the dense decoder's prefill time on this machine, as a table of timings predicts it. Null:
    another measure is bounded."""

    @model_validator(mode="after")
    def _one_bound(self):
        if sum(value is not None for value in vars(self).values()) != 1:
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}")
        return self

    @property
    def measure(self) -> str:
        """The name of the measure that is bounded."""
        return next(name for name, value in vars(self).items() if value is not None)

    @property
    def share(self) -> float:
        """The bound, a share in [0, 1]."""
        return getattr(self, self.measure)

    def refuse_below(self, price: float, cheapest: str) -> None:
        """Refuses a budget that even the cheapest plan exceeds.

        Args:
            price: the price of the cheapest plan in the budget's measure.
            cheapest: describes the cheapest plan in words, for the error message.

        Raises:
            UserError: the budget lies below `price`.
        """
        if self.share < price:
            raise UserError(
                f"plan.budget.{self.measure}: got {self.share:g}, allowed: {price:.4g} or more, the cost of {cheapest}"
            )
