"""The search that a planner is given: the model, the data, and what was measured on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from modeling.layer_plan import LayerPlan
from modeling.visual_plan import VisualPlan
from training.journal import Journal
from training.measure.answer_kl import AnswerKL
from training.measure.budget import Budget
from training.measure.calibration import Calibration, measuring_tasks
from training.measure.fingerprint import fingerprint
from training.measure.latency import LatencyTable
from training.measure.price import PlanPrice
from training.planners.tools.withdrawal import own_withdrawals
from training.ranks import OnAllRanks, alone, own_share

JOURNAL = "answer_kl.jsonl"
"""Name of the journal in the folder of a search. It holds the KL of each plan that was measured."""


@dataclass(frozen=True)
class Search:
    """The model and the data of one search.

    Args:
        model: a sparse model with the dense weights. Any plan may be in force, and it is restored.
        batches: the calibration data, as dicts that `data.collator.Collator` returns.
        calibration: statistics of the model. None if the planner does not read them.
        latency: timings of the machine. None if no budget bounds latency.
        folder: where the search writes what it measured. A search that is started again continues from these files, so
            the folder belongs to this search alone. None writes nothing.
        ranks: does `search_tasks` on every rank. None does all in this process.
        shared: what searches of the same model and data share, once it is known.
    """

    model: PreTrainedModel
    batches: Sequence[dict]
    calibration: Calibration | None = None
    latency: LatencyTable | None = None
    folder: Path | None = None
    ranks: OnAllRanks | None = None
    shared: dict[str, str] = field(default_factory=dict, repr=False)

    @cached_property
    def on_all_ranks(self) -> OnAllRanks:
        """Does a task on every rank."""
        return self.ranks or alone(search_tasks(self.model, self.batches))

    @property
    def config(self) -> PreTrainedConfig:
        """Config of the model."""
        return self.model.config

    @cached_property
    def answer_kl(self) -> AnswerKL:
        """Measures how much a plan changes the answers. The dense model's answers are computed once.

        Plans that were measured before this search was stopped are not measured again.

        Raises:
            UserError: no calibration sample with an image has an answer.
        """
        journal = None
        if self.folder is not None:
            journal = Journal(self.folder / JOURNAL, self.subject)
        return AnswerKL(self.model, self.batches, self.on_all_ranks, journal)

    @property
    def subject(self) -> str:
        """The fingerprint of the model and the data. Searches in other folders share it, since all weights are read."""
        if "subject" not in self.shared:
            self.shared["subject"] = fingerprint(self.model, self.batches)
        return self.shared["subject"]

    def price_within(self, budget: Budget) -> PlanPrice:
        """Returns the price of plans in the budget's measure.

        Raises:
            UserError: even text alone exceeds the budget, so no plan meets it.
        """
        price = PlanPrice(self.config, budget.measure, self.latency)
        text_alone = VisualPlan(layers=(LayerPlan(tokens=0.0),) * self.config.text_config.num_hidden_layers)
        budget.refuse_below(price(text_alone), "text alone, without any visual token")
        return price

    def file(self, name: str) -> Path | None:
        """Returns the path of a file in the search's folder, or None if the search has no folder."""
        return None if self.folder is None else self.folder / name

    def subsearch(self, name: str) -> "Search":
        """Returns a search with the same model and data, and with a folder of its own below this one's."""
        return replace(self, folder=self.file(name))


def search_tasks(model: PreTrainedModel, batches: Sequence[dict]) -> dict[str, Callable[..., Any]]:
    """Returns what a search asks of every rank, given all batches."""
    own = own_share(batches)
    return {**measuring_tasks(model, batches), "withdrawals": lambda at: own_withdrawals(model, own, at)}
