"""What a planner finds its plan with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel

from modeling.layer_plan import LayerPlan
from modeling.visual_plan import VisualPlan
from training.measure.answer_kl import AnswerKL
from training.measure.budget import Budget
from training.measure.calibration import Calibration
from training.measure.latency import LatencyTable
from training.measure.price import PlanPrice


@dataclass(frozen=True)
class Search:
    """The model and the data of one search.

    Args:
        model: the dense weights. Any plan may be in force; it is restored.
        batches: the calibration data, dicts of `data.collator.Collator`.
        calibration: statistics of the model; None where the planner does not read them.
        latency: timings of the machine; None where no budget bounds latency.
        folder: where the search leaves what it measured. It goes on from there when it is started again, so the folder
            belongs to this search alone. None keeps nothing.
    """

    model: PreTrainedModel
    batches: Sequence[dict]
    calibration: Calibration | None = None
    latency: LatencyTable | None = None
    folder: Path | None = None

    @property
    def config(self) -> PreTrainedConfig:
        return self.model.config

    @cached_property
    def answer_kl(self) -> AnswerKL:
        """How far a plan moves the answers. The dense model's answers are computed once."""
        return AnswerKL(self.model, self.batches)

    def price_within(self, budget: Budget) -> PlanPrice:
        """Returns the price of plans in the budget's measure. Raises UserError where no plan at all meets the budget."""
        price = PlanPrice(self.config, budget.measure, self.latency)
        text_alone = VisualPlan(layers=(LayerPlan(tokens=0.0),) * self.config.text_config.num_hidden_layers)
        budget.refuse_below(price(text_alone), "text alone, without any visual token")
        return price

    def file(self, name: str) -> Path | None:
        """Returns the path of a file in the search's folder; None where nothing is kept."""
        return None if self.folder is None else self.folder / name

    def part(self, name: str) -> "Search":
        """Returns a search of its own with the same model and data, in a folder below this one."""
        return replace(self, folder=self.file(name))
