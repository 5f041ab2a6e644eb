"""Greedy planner: goes from the dense plan to the budget by the moves that raise the answer KL least per cost saved.

Each step takes the best move of `Moves`. A move stops a layer's attention or FFN for visual tokens, freezes the layer,
hides visual tokens from its text, shuts a unit, narrows the FFN, shrinks the radius, or withdraws the tokens. Once the
budget is met, the rest of it is spent on the opening moves that lower the KL most per cost added.

The search starts twice: from the dense plan, and from the plan that updates no visual token but lets every layer read
them. Step by step, many expensive moves separate the second plan from the first. The result is the better of both ends.

Evaluating a plan is the expensive part, so the search is lazy. A move keeps the KL change of its last evaluation, or an
estimate (tools/move_estimate.py). Only moves at the head of the queue are evaluated again. The KL is that of the
untrained plan, because distillation comes later.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import TYPE_CHECKING, Literal

from modeling.visual_plan import VisualPlan
from training.planners.planner import BudgetPlanner
from training.planners.tools.move_estimate import ESTIMATED_MOVES, optimistic_kl_change
from training.planners.tools.moves import Move, Moves
from training.progress import Progress

if TYPE_CHECKING:
    from training.measure.answer_kl import AnswerKL
    from training.measure.budget import Budget
    from training.measure.calibration import Calibration
    from training.measure.price import PlanPrice
    from training.planners.tools.search import Search

MIN_STEP = 1 / 16
"""A move must save this share of the cost above the budget. Large moves are made far from it, small ones near it."""


class GreedyPlanner(BudgetPlanner):
    """Searches step by step for the plan within the budget that changes the answers least, by the answer KL."""

    reads_statistics = True
    reads_unit_kl = True
    planner: Literal["greedy"]

    def find(self, search: Search) -> VisualPlan:
        """Returns the plan with the smallest answer KL that the search finds within the budget.

        Raises:
            UserError: even text alone exceeds the budget, or no calibration sample with an image has an answer.
        """
        price = search.price_within(self.budget)
        moves = Moves(search.config, search.calibration)
        starts = (moves.dense, moves.all_frozen)
        with Progress(desc="greedy plan", unit="%", total=100) as bar:
            walks = _Walks(
                moves, search.calibration, search.answer_kl, price, self.budget, _WalkProgress(bar, len(starts))
            )
            ends = [walks.walk(start) for start in starts]
            return moves.with_units(min(ends, key=walks.kl))


class _WalkProgress:
    """Shows in a bar, in percent, how much of the price above the budget was saved. All walks have equal parts of it.

    Args:
        bar: has a total of 100.
        num_walks: how many walks there will be.
    """

    def __init__(self, bar: Progress, num_walks: int):
        self._bar, self._num_walks, self._num_ended = bar, num_walks, 0

    def step(self, saved: float, text: str) -> None:
        """Shows that a walk saved this share of the price above the budget, and where it stands in words."""
        self._bar.update(int(100 * (self._num_ended + saved) / self._num_walks) - self._bar.n)
        self._bar.set_postfix_str(text)

    def end_walk(self) -> None:
        """Shows that a walk is at its end."""
        self._num_ended += 1
        self._bar.update(100 * self._num_ended // self._num_walks - self._bar.n)


class _Walks:
    """Walks from plan to plan by single moves, down to a budget and up to it again."""

    def __init__(
        self,
        moves: Moves,
        calibration: Calibration,
        answer_kl: AnswerKL,
        price: PlanPrice,
        budget: Budget,
        progress: _WalkProgress,
    ):
        self._moves = moves
        self._calibration = calibration
        self._answer_kl = answer_kl
        self._price = price
        self._budget = budget
        self._progress = progress
        self._kls: dict[VisualPlan, float] = {}

    def kl(self, plan: VisualPlan) -> float:
        """Returns the answer KL, in nats, of a plan that counts its units."""
        if plan not in self._kls:
            self._kls[plan] = self._answer_kl(self._moves.with_units(plan))
        return self._kls[plan]

    def walk(self, plan: VisualPlan) -> VisualPlan:
        """Returns a plan within the budget from which no opening move within the budget lowers the KL."""
        kl_changes: dict[Move, float] = {}
        price = self._price(plan)
        to_save = price - self._budget.share
        while (excess := price - self._budget.share) > 0:
            cheaper = [(move, after, price - self._price(after)) for move, after in self._moves.closings(plan)]
            # What a move saves beyond the budget has no value, so it does not count.
            steps = [(move, after, min(saved, excess)) for move, after, saved in cheaper if saved >= MIN_STEP * excess]
            plan, _ = self._best(plan, steps, kl_changes)
            price = self._price(plan)
            self._show(plan, price, saved=min(1 - (price - self._budget.share) / to_save, 1.0))
        kl_changes = {}
        while True:
            dearer = [(move, after, self._price(after) - price) for move, after in self._moves.openings(plan)]
            within = [(move, after, added) for move, after, added in dearer if 0 < added <= self._budget.share - price]
            better, kl_change = self._best(plan, within, kl_changes)
            if kl_change >= 0:
                self._progress.end_walk()
                return plan
            plan, price = better, self._price(better)
            self._show(plan, price, saved=1.0)

    def _show(self, plan: VisualPlan, price: float, saved: float) -> None:
        """Shows where a walk stands. `saved` is the share of the price above the budget."""
        self._progress.step(
            saved,
            f"{self._budget.measure} {price:.1%} of {self._budget.share:.1%}, KL {self.kl(plan):.4f}, "
            f"{self._answer_kl.num_evaluations} plans",
        )

    def _best(
        self, plan: VisualPlan, candidates: list[tuple[Move, VisualPlan, float]], kl_changes: dict[Move, float]
    ) -> tuple[VisualPlan, float]:
        """Returns the candidate's plan with the smallest KL change per cost, and that KL change in nats.

        Returns `plan` itself and 0 if there are no candidates.

        Args:
            candidates: a move, the plan after it, and the price that it saves or adds.
            kl_changes: the KL change of each move when it was last evaluated. New evaluations are written into it.
        """
        for move, after, _ in candidates:
            if move not in kl_changes and move[0] not in ESTIMATED_MOVES:
                kl_changes[move] = self.kl(after) - self.kl(plan)
        order = count()
        queue = []
        for move, after, cost in candidates:
            kl_change = (
                kl_changes[move]
                if move in kl_changes
                else optimistic_kl_change(move, plan, after, self._calibration, kl_changes)
            )
            queue.append((kl_change / cost, next(order), False, move, after, cost))
        heapq.heapify(queue)
        while queue:
            _, _, is_measured, move, after, cost = heapq.heappop(queue)
            if is_measured:
                return after, kl_changes[move]
            kl_changes[move] = self.kl(after) - self.kl(plan)
            heapq.heappush(queue, (kl_changes[move] / cost, next(order), True, move, after, cost))
        return plan, 0.0
