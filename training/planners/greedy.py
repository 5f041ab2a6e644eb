"""Greedy planner: from the dense plan to the budget by the moves that cost the least answer KL per FLOP saved.

Each step takes the best move of `Moves`: stop a layer's attention or FFN for visual tokens, freeze it, blind it, shut a
unit, narrow an FFN, shrink the radius, withdraw. Once the budget is met, what is left of it is spent on re-opening the work
that gains the most KL per FLOP. The walk is done twice, from the dense plan and from the plan that updates no visual token
but lets every layer read them, which step by step lies behind many expensive moves; the better end is the plan.

Evaluations are what costs time, so the search is lazy: a move keeps the KL change of its last evaluation, or a first guess
(first_guess.py), and only moves at the head of the queue are evaluated anew. The KL is that of the untrained plan:
distillation comes after.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import TYPE_CHECKING, Literal

from tqdm.auto import tqdm

from modeling.visual_plan import VisualPlan
from training.planners.planner import BudgetPlanner
from training.planners.tools.first_guess import GUESSED, first_guess
from training.planners.tools.moves import Move, Moves

if TYPE_CHECKING:
    from training.measure.answer_kl import AnswerKL
    from training.measure.calibration import Calibration
    from training.measure.price import PlanPrice
    from training.planners.tools.search import Search

LEAST_STEP = 1 / 16
"""Of the FLOPs above the budget: far from it only large moves are made, near it the small ones come in."""


class GreedyPlanner(BudgetPlanner):
    """Search by answer KL."""

    reads_statistics = True
    planner: Literal["greedy"]

    def find(self, search: Search) -> VisualPlan:
        """Returns the plan of least answer KL that the search finds within the budget."""
        price = search.price_within(self.budget)
        moves = Moves(search.config, search.calibration)
        with tqdm(desc="greedy plan", unit="plan") as progress:
            walks = _Walks(moves, search.calibration, search.answer_kl, price, self.budget.share, progress)
            ends = [walks.walk(start) for start in (moves.dense, moves.all_frozen)]
            return moves.with_units(min(ends, key=walks.kl))


class _Walks:
    def __init__(
        self,
        moves: Moves,
        calibration: Calibration,
        answer_kl: AnswerKL,
        price: PlanPrice,
        budget: float,
        progress: tqdm,
    ):
        self._moves = moves
        self._calibration = calibration
        self._answer_kl = answer_kl
        self._price = price
        self._budget = budget
        self._progress = progress

    def kl(self, plan: VisualPlan) -> float:
        """Answer KL of a plan that counts its units."""
        value = self._answer_kl(self._moves.with_units(plan))
        self._progress.update(self._answer_kl.num_evaluations - self._progress.n)
        return value

    def walk(self, plan: VisualPlan) -> VisualPlan:
        """Down to the budget, then up to it: a plan from which no opening within the budget lowers the KL."""
        known: dict[Move, float] = {}
        while (price := self._price(plan)) > self._budget:
            excess = price - self._budget
            cheaper = [(move, to, price - self._price(to)) for move, to in self._moves.closings(plan)]
            # What a move saves beyond the budget is worth nothing.
            steps = [(move, to, min(saved, excess)) for move, to, saved in cheaper if saved >= LEAST_STEP * excess]
            plan, _ = self._best(plan, steps, known)
        known = {}
        while True:
            price = self._price(plan)
            dearer = [(move, to, self._price(to) - price) for move, to in self._moves.openings(plan)]
            within = [(move, to, added) for move, to, added in dearer if 0 < added <= self._budget - price]
            better, change = self._best(plan, within, known)
            if change >= 0:
                return plan
            plan = better

    def _best(
        self, plan: VisualPlan, candidates: list[tuple[Move, VisualPlan, float]], known: dict[Move, float]
    ) -> tuple[VisualPlan, float]:
        """The candidate (move, plan, FLOPs) of least KL change per FLOP, and its KL change; `plan` itself if there is none.

        `known` holds each move's KL change when it was last evaluated, and is brought up to date.
        """
        for move, to, _ in candidates:
            if move not in known and move[0] not in GUESSED:
                known[move] = self.kl(to) - self.kl(plan)
        order = count()
        queue = []
        for move, to, flops in candidates:
            change = known[move] if move in known else first_guess(move, plan, to, self._calibration, known)
            queue.append((change / flops, next(order), False, move, to, flops))
        heapq.heapify(queue)
        while queue:
            _, _, fresh, move, to, flops = heapq.heappop(queue)
            if fresh:
                self._progress.set_postfix_str(f"visual FLOPs {self._price(to):.1%}, KL {self.kl(to):.4f}")
                return to, known[move]
            known[move] = self.kl(to) - self.kl(plan)
            heapq.heappush(queue, (known[move] / flops, next(order), True, move, to, flops))
        return plan, 0.0
