"""The answer KL equals a slow count sample by sample, is zero for the dense plan, and evaluates each work once."""

import pytest
import torch

from modeling.layer_plan import Rank
from modeling.visual_plan import VisualPlan
from tests.tiny_student import single_samples, tiny_batch, tiny_student
from training.measure.answer_kl import AnswerKL

NUM_LAYERS = 3
BLIND = VisualPlan.dense(NUM_LAYERS).replace(0, read=False, ffn=0).replace(1, heads=(1,))


def slow_kl(model, batch: dict, plan: VisualPlan) -> tuple[float, int]:
    """Returns the sum of the KL over the answer tokens of samples with images, and their number.

    It uses full logits, no padding and no caches.
    """
    total, num_tokens = 0.0, 0
    for sample in single_samples(batch):
        if "pixel_values" not in sample:
            continue
        labels = sample.pop("labels")[0]
        log_probabilities = []
        for each in (VisualPlan.dense(NUM_LAYERS), plan):
            with torch.no_grad(), model.use_plan(each):
                log_probabilities.append(model(**sample).logits[0].double().log_softmax(-1))
        dense, sparse = log_probabilities
        for position in range(len(labels) - 1):
            if labels[position + 1] != -100:
                total += float((dense[position].exp() * (dense[position] - sparse[position])).sum())
                num_tokens += 1
    return total, num_tokens


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_equals_a_slow_count(padding_side):
    model = tiny_student(NUM_LAYERS)
    batches = [
        tiny_batch((1, 0, 2), seed=1, padding_side=padding_side),
        tiny_batch((0,), seed=2),
        tiny_batch((1,), seed=3),
    ]
    sums = [slow_kl(model, batch, BLIND) for batch in batches]
    expected = sum(total for total, _ in sums) / sum(count for _, count in sums)
    assert expected > 1e-3
    assert AnswerKL(model, batches)(BLIND) == pytest.approx(expected, rel=1e-4)


def test_a_plan_may_rank_by_the_tower_after_one_that_does_not():
    model, batch = tiny_student(NUM_LAYERS), tiny_batch((1, 2), seed=1)
    answer_kl = AnswerKL(model, [batch])
    ranking = VisualPlan.dense(NUM_LAYERS).replace(0, tokens=0.4, rank=Rank(by="cls_attention"))
    for plan in (BLIND, ranking, BLIND):
        total, count = slow_kl(model, batch, plan)
        assert total > 0 and answer_kl.distance(plan)["kl"] == pytest.approx(total / count, rel=1e-4)


def test_dense_is_zero_and_needs_no_evaluation():
    answer_kl = AnswerKL(tiny_student(NUM_LAYERS), [tiny_batch((1, 1))])
    assert answer_kl(VisualPlan.dense(NUM_LAYERS)) == 0.0
    # The last layer's visual updates are read by nobody: still the dense plan.
    assert answer_kl(VisualPlan.dense(NUM_LAYERS).replace(NUM_LAYERS - 1, attend=False, ffn=0)) == 0.0
    assert answer_kl.num_evaluations == 0


def test_plans_of_the_same_work_are_one_evaluation():
    answer_kl = AnswerKL(tiny_student(NUM_LAYERS), [tiny_batch((1, 1))])
    dense = VisualPlan.dense(NUM_LAYERS)
    withdrawn = answer_kl(dense.replace(2, tokens=0.0))
    blind = answer_kl(dense.replace(2, read=False).replace(1, ffn=0))
    assert withdrawn == blind > 0
    assert answer_kl.num_evaluations == 1


def test_the_plan_in_force_is_restored():
    model = tiny_student(NUM_LAYERS)
    model.set_visual_plan(BLIND)
    AnswerKL(model, [tiny_batch((1,))])(VisualPlan.dense(NUM_LAYERS).replace(0, attend=False))
    assert model.visual_plan == BLIND


def test_data_without_pictures_or_answers_is_refused():
    model = tiny_student(NUM_LAYERS)
    without_answers = tiny_batch((1,))
    without_answers["labels"] = torch.full_like(without_answers["labels"], -100)
    for batch in (tiny_batch((0, 0)), without_answers):
        with pytest.raises(ValueError, match="no supervised answer"):
            AnswerKL(model, [batch])
