"""The published rules that learned plans are compared with meet their budgets and have their known shapes."""

import pytest
import torch

from modeling.layer_plan import LayerPlan
from modeling.visual_plan import VisualPlan
from tests.tiny_student import tiny_batch, tiny_student
from tests.training.planners.tiny_calibration import NUM_LAYERS, NUM_UNITS, tiny_calibration, tiny_config, tiny_search
from training.measure.answer_kl import AnswerKL
from training.measure.price import PlanPrice
from training.planners.operator_skip import OperatorSkipPlanner
from training.planners.shortv import ShortvPlanner
from training.planners.tools.search import Search
from training.planners.uniform import UniformPlanner
from training.planners.v_skip import VSkipPlanner
from training.planners.vica import VicaPlanner

CONFIG, CALIBRATION = tiny_config(), tiny_calibration()
PRICE = PlanPrice(CONFIG)


def vica(share):
    return VicaPlanner(planner="vica", budget={"visual_flops": share}).find(tiny_search(CONFIG, CALIBRATION))


def uniform(share):
    return UniformPlanner(planner="uniform", budget={"visual_flops": share}).find(tiny_search(CONFIG, CALIBRATION))


@pytest.mark.parametrize("share", [0.04, 0.1, 0.2, 1.0])
def test_vica_updates_nothing_and_reads_where_it_matters(share):
    plan = vica(share)
    assert PRICE(plan) <= share
    order = CALIBRATION.unit_kl.sum(1).argsort(descending=True).tolist()
    read = [index for index, layer in enumerate(plan.layers) if layer.read and layer.tokens]
    assert sorted(order[: len(read)]) == read and all(
        not layer.attend and layer.ffn == 0 for layer in plan.layers if layer.tokens
    )
    if len(read) < NUM_LAYERS:
        wider = {*read, order[len(read)]}
        layers = (LayerPlan(attend=False, ffn=0, read=index in wider) for index in range(NUM_LAYERS))
        assert PRICE(VisualPlan(tuple(layers))) > share, "one more layer would have fitted"
    with pytest.raises(ValueError, match="allowed: .* or more, the cost of one layer read"):
        vica(0.001)


@pytest.mark.parametrize("share", [0.2, 0.3, 0.7])
def test_uniform_narrowing_is_the_same_in_every_layer(share):
    plan = uniform(share)
    assert 0 < PRICE(plan) <= share
    live = plan.live(NUM_UNITS, CONFIG.text_config.intermediate_size)
    assert len({layer.num_heads for layer in live}) == 1 and len({layer.num_ffn for layer in live[:-1]}) == 1
    least_kl, most_kl = CALIBRATION.unit_kl[0].argsort().tolist()[0], CALIBRATION.unit_kl[0].argmax().item()
    if live[0].num_heads < NUM_UNITS:
        assert most_kl in plan.layers[0].heads and least_kl not in plan.layers[0].heads
    with pytest.raises(ValueError, match="allowed: 0.1.* or more, the cost of the narrowest uniform plan"):
        uniform(0.01)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_shortv_freezes_what_costs_least_alone(share):
    model, batches = tiny_student(num_layers=5), [tiny_batch((1, 2))]
    price, answer_kl, dense = PlanPrice(model.config), AnswerKL(model, batches), VisualPlan.dense(5)
    plan = ShortvPlanner(planner="shortv", budget={"visual_flops": share}).find(Search(model, batches))
    assert price(plan) <= share
    frozen = [index for index, layer in enumerate(plan.layers) if not layer.attend]
    alone = torch.tensor([answer_kl(dense.replace(index, attend=False, ffn=0)) for index in range(5)])
    assert sorted(alone.argsort(stable=True).tolist()[: len(frozen)]) == frozen
    fewer = plan.replace(alone.argsort(stable=True).tolist()[len(frozen) - 1], attend=True, ffn=None)
    assert price(fewer) > share, "a layer was frozen that need not be"
    assert all(layer.read and layer.heads is None for layer in plan.layers)
    with pytest.raises(ValueError, match="allowed: .* or more, the cost of frozen layers that are read"):
        ShortvPlanner(planner="shortv", budget={"visual_flops": 0.01}).find(Search(model, batches))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_operators_are_skipped_by_what_the_answers_see_of_each(share):
    model, batches = tiny_student(num_layers=5), [tiny_batch((1, 2))]
    price, answer_kl, dense = PlanPrice(model.config), AnswerKL(model, batches), VisualPlan.dense(5)
    plan = OperatorSkipPlanner(planner="operator_skip", budget={"visual_flops": share}).find(Search(model, batches))
    assert price(plan) <= share
    without = {("attend", index): dense.replace(index, attend=False) for index in range(5)}
    without |= {("ffn", index): dense.replace(index, ffn=0) for index in range(5)}
    # Nothing reads what the last layer makes of visual tokens, so neither of its operators is executed.
    saved = {operator: price(dense) - price(one) for operator, one in without.items()}
    assert [operator for operator, saving in saved.items() if saving == 0] == [("attend", 4), ("ffn", 4)]
    worth = {operator: answer_kl(one) / saved[operator] for operator, one in without.items() if saved[operator]}
    order = sorted(worth, key=worth.get)
    skipped = {("attend", index) for index, layer in enumerate(plan.layers) if not layer.attend}
    skipped |= {("ffn", index) for index, layer in enumerate(plan.layers) if layer.ffn == 0}
    assert skipped == set(order[: len(skipped)])
    name, index = order[len(skipped) - 1]
    fewer = plan.replace(index, **{name: {"attend": True, "ffn": None}[name]})
    assert price(fewer) > share, "an operator was skipped that need not be"
    assert all(layer.read and layer.heads is None and layer.tokens == 1 for layer in plan.layers)
    with pytest.raises(ValueError, match="allowed: .* or more, the cost of layers that skip attention and FFN"):
        OperatorSkipPlanner(planner="operator_skip", budget={"visual_flops": 0.01}).find(Search(model, batches))


def test_v_skip_skips_attention_alone_in_deep_layers():
    given = VSkipPlanner(planner="v_skip", start=2).plan_of_config(CONFIG)
    assert [layer.attend for layer in given.layers] == [index < 2 for index in range(NUM_LAYERS)]
    assert all(layer == LayerPlan(attend=layer.attend) for layer in given.layers)
    later = VSkipPlanner(planner="v_skip", start=3).plan_of_config(CONFIG)
    assert PRICE(given) < PRICE(later)
    assert VSkipPlanner(planner="v_skip", budget={"visual_flops": PRICE(given)}).plan_of_config(CONFIG) == given
    between = (PRICE(given) + PRICE(later)) / 2
    assert VSkipPlanner(planner="v_skip", budget={"visual_flops": between}).plan_of_config(CONFIG) == given
    with pytest.raises(ValueError, match=f"plan.start: got {NUM_LAYERS}, allowed: 0 to {NUM_LAYERS - 1}"):
        VSkipPlanner(planner="v_skip", start=NUM_LAYERS).plan_of_config(CONFIG)
    with pytest.raises(ValueError, match="allowed: .* or more, the cost of all layers without attention"):
        VSkipPlanner(planner="v_skip", budget={"visual_flops": 0.1}).plan_of_config(CONFIG)
