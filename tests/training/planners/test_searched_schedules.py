"""The searches of G-Search and P-Sigmoid find what a plain reading of the rule finds among the same trials."""

import math

import pytest
import torch
from pydantic import ValidationError

from modeling.layer_plan import LayerPlan, Rank
from modeling.visual_plan import VisualPlan
from tests.tiny_student import single_samples, tiny_batch, tiny_student
from training.measure.answer_kl import AnswerKL
from training.measure.price import PlanPrice
from training.planners.g_search import GSearchPlanner
from training.planners.p_sigmoid import PUBLISHED_K, PSigmoidPlanner
from training.planners.tools.search import Search
from training.planners.tools.trials import TRIALS, read_trials

NUM_LAYERS = 5
MODEL = tiny_student(NUM_LAYERS, seed=3)
BATCHES = [tiny_batch((1, 0, 2), seed=1), tiny_batch((1, 1, 1), seed=3, padding_side="left")]
ANSWER_KL = AnswerKL(MODEL, BATCHES)


def g_search(folder=None, **settings) -> VisualPlan:
    return GSearchPlanner(planner="g_search", **settings).find(Search(MODEL, BATCHES, None, folder=folder))


def tokens(plan: VisualPlan) -> list[float]:
    return [layer.tokens for layer in plan.layers]


def plain_plan(shares: list[float]) -> VisualPlan:
    """Returns the plan that carries these shares, ranked by the prompt after the picture."""
    layers, carried = [], 1.0
    for share in shares:
        rank = Rank(by="text_attention", rows="instruction") if 0 < share < carried else Rank()
        layers.append(LayerPlan(tokens=share, rank=rank))
        carried = share
    return VisualPlan(tuple(layers))


def slow_kl(plan: VisualPlan) -> float:
    """Returns the mean over answer tokens of KL(dense || plan), computed sample by sample."""
    divergences = []
    for sample in (one for batch in BATCHES for one in single_samples(batch) if "pixel_values" in one):
        labels = sample["labels"][0]
        rows = (labels[1:] != -100).nonzero()[:, 0]
        logits = []
        for one in (VisualPlan.dense(NUM_LAYERS), plan):
            with torch.no_grad(), MODEL.use_plan(one):
                logits.append(MODEL(**sample).logits[0, rows].double().log_softmax(-1))
        dense, sparse = logits
        divergences += (dense.exp() * (dense - sparse)).sum(-1).tolist()
    return sum(divergences) / len(divergences)


TOLERANCE = ANSWER_KL(plain_plan([1.0, 1.0, 0.5, 0.5, 0.0]))


@pytest.mark.slow
def test_each_layer_takes_the_least_share_tried_with_which_the_answers_stay(tmp_path):
    plan = g_search(tmp_path, tolerance=TOLERANCE)
    searches = read_trials(tmp_path / TRIALS)
    shares, strict = [1.0, 1.0], 0
    for trials in searches.values():
        kept = []
        for share, _ in trials:
            share = round(share, 6)
            assert 0 <= share <= shares[-1]
            if slow_kl(plain_plan([*shares, *[share] * (NUM_LAYERS - len(shares))])) <= TOLERANCE:
                kept.append(share)
        assert 0 < len(kept) < len(trials) or kept == [share for share, _ in trials]
        shares.append(min(kept))
        strict += shares[-1] < shares[-2]
    shares += [0.0] * (NUM_LAYERS - len(shares))
    assert plan == plain_plan(shares) and strict
    assert slow_kl(plan) <= TOLERANCE < slow_kl(plain_plan([*shares[:2], 0.0, 0.0, 0.0]))


@pytest.mark.slow
def test_the_tolerance_decides_between_all_tokens_and_none():
    one_layer_full = g_search(tolerance=100.0, full_layers=1)
    assert tokens(one_layer_full) == [1.0, 0.0, 0.0, 0.0, 0.0] and tokens(g_search(tolerance=100.0)) == [
        1.0,
        1.0,
        0.0,
        0.0,
        0.0,
    ]
    price = PlanPrice(MODEL.config)
    costs = [price(g_search(tolerance=share * TOLERANCE)) for share in (0.0, 0.5, 1.0, 2.0)]
    assert costs == sorted(costs, reverse=True) and costs[0] > costs[-1]
    assert ANSWER_KL(g_search(tolerance=0.0)) == 0.0


@pytest.mark.slow
def test_the_seed_and_the_number_of_trials_decide(tmp_path):
    assert g_search(tolerance=TOLERANCE) == g_search(tolerance=TOLERANCE)
    assert g_search(tolerance=TOLERANCE, seed=100) != g_search(tolerance=TOLERANCE)
    g_search(tmp_path, tolerance=TOLERANCE, trials=3)
    assert {len(trials) for trials in read_trials(tmp_path / TRIALS).values()} == {3}


def knowing_batches() -> list[dict]:
    """Returns batches whose answers are exactly those of the dense model."""
    batches = []
    for batch in BATCHES:
        labels = batch["labels"].clone()
        for _ in range(4):  # a changed answer changes what is said after it
            ids = torch.where(labels != -100, labels, batch["input_ids"])
            with torch.no_grad():
                said = MODEL(**{**batch, "input_ids": ids, "labels": None}).logits.argmax(-1).roll(1, dims=1)
            labels = torch.where(labels != -100, said, labels)
        batches.append(
            {**batch, "input_ids": torch.where(labels != -100, labels, batch["input_ids"]), "labels": labels}
        )
    return batches


def test_accuracy_counts_answers_that_are_right_in_every_token():
    batches = knowing_batches()
    dense = VisualPlan.dense(NUM_LAYERS)
    assert AnswerKL(MODEL, batches).accuracy(dense) == 1.0
    samples = [one for batch in batches for one in single_samples(batch) if "pixel_values" in one]
    right = 0
    plan = plain_plan([1.0, 0.3, 0.0, 0.0, 0.0])
    for sample in samples:
        rows = (sample["labels"][0, 1:] != -100).nonzero()[:, 0]
        with torch.no_grad(), MODEL.use_plan(plan):
            said = MODEL(**sample).logits[0, rows].argmax(-1)
        right += bool((said == sample["labels"][0, rows + 1]).all())
    assert AnswerKL(MODEL, batches).accuracy(plan) == right / len(samples) < 1.0
    wrong = {**batches[0], "labels": batches[0]["labels"].clone()}
    place = (wrong["labels"][0] != -100).nonzero()[-1]
    wrong["labels"][0, place] = (wrong["labels"][0, place] + 1) % 30 + 4
    assert AnswerKL(MODEL, [wrong, batches[1]]).accuracy(dense) == (len(samples) - 1) / len(samples)


def test_a_conversation_has_several_answers():
    batch = tiny_batch((1,), seed=1)
    labels = torch.full_like(batch["labels"], -100)
    with torch.no_grad():
        said = MODEL(**{**batch, "labels": None}).logits.argmax(-1).roll(1, dims=1)
    for place, right in ((-1, True), (-3, False), (-5, True)):
        labels[0, place] = said[0, place] if right else (said[0, place] + 1) % 30
    assert AnswerKL(MODEL, [{**batch, "labels": labels}]).accuracy(VisualPlan.dense(NUM_LAYERS)) == pytest.approx(2 / 3)


def test_accuracy_as_the_measure_keeps_the_share_of_right_answers():
    batches = knowing_batches()
    answers = AnswerKL(MODEL, batches)

    def found(tolerance):
        settings = GSearchPlanner(planner="g_search", measure="accuracy", tolerance=tolerance, full_layers=1)
        return settings.find(Search(MODEL, batches, None))

    strict, loose = found(0.0), found(0.5)
    assert answers.accuracy(strict) == 1.0 and 0.5 <= answers.accuracy(loose) < 1.0
    assert PlanPrice(MODEL.config)(loose) < PlanPrice(MODEL.config)(strict) < 1.0


# ---- P-Sigmoid ----


def p_sigmoid(folder=None, **settings) -> VisualPlan:
    return PSigmoidPlanner(planner="p_sigmoid", **settings).find(Search(MODEL, BATCHES, None, folder=folder))


def test_the_slope_is_the_best_of_those_tried_within_the_budget(tmp_path):
    budget = {"visual_flops": 0.7}
    plan = p_sigmoid(tmp_path, budget=budget)
    (tried,) = read_trials(tmp_path / TRIALS).values()
    published = [k * 32 / NUM_LAYERS for k in PUBLISHED_K]
    assert [k for k, _ in tried[:5]] == pytest.approx(published) and len(tried) == 16
    plans = [PSigmoidPlanner(planner="p_sigmoid", k=k, budget=budget).plan_of_config(MODEL.config) for k, _ in tried]
    distances = [slow_kl(one) for one in plans]
    assert [value for _, value in tried] == pytest.approx(distances, rel=1e-4)
    assert plan == plans[distances.index(min(distances))] and len({round(value, 6) for value in distances}) > 3
    assert PlanPrice(MODEL.config)(plan) <= 0.7
    assert plan != p_sigmoid(budget={"visual_flops": 0.6})


def test_what_does_not_fit_is_refused():
    for wrong in (
        {},
        {"tolerance": -1.0},
        {"tolerance": 0.1, "trials": 1},
        {"tolerance": 0.1, "budget": {"visual_flops": 0.5}},
    ):
        with pytest.raises(ValidationError):
            g_search(**wrong)
    with pytest.raises(ValueError, match=r"plan.full_layers: got 5, allowed: 1 to 4, as the model has 5 layers"):
        g_search(tolerance=0.1, full_layers=5)
    with pytest.raises(ValidationError, match="k is searched within a budget"):
        p_sigmoid(alpha=3.0)
    with pytest.raises(
        ValueError, match=r"plan.budget.visual_flops: got 0.05, allowed: 0\.\d+ or more, the cost of all tokens"
    ):
        p_sigmoid(budget={"visual_flops": 0.05})
    assert math.isclose(p_sigmoid(budget={"visual_flops": 0.5}, full_layers=1, k=1.0).layers[0].tokens, 1.0)
