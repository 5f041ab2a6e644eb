import itertools

import pytest
import torch

from modeling.layer_plan import LayerPlan
from modeling.visual_flops import DecoderShape, visual_fraction
from modeling.visual_gates import GATE_KINDS, LayerGates, VisualGates
from modeling.visual_plan import VisualPlan
from tests.tiny_student import tiny_batch, tiny_student

NUM_LAYERS, NUM_UNITS, NUM_NEURONS, NUM_BLOCKS = 3, 2, 24, 4
SHAPES = {
    "attend": (NUM_LAYERS,),
    "ffn": (NUM_LAYERS,),
    "read": (NUM_LAYERS,),
    "heads": (NUM_LAYERS, NUM_UNITS),
    "neurons": (NUM_LAYERS, NUM_BLOCKS),
}


def gates(log_alpha=None, learned=None, seed=0):
    """All learned and at log alpha 0, but for what is given; neurons spread over the blocks at random."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(NUM_NEURONS, generator=generator) for _ in range(NUM_LAYERS)])
    return VisualGates(
        log_alpha={name: torch.zeros(shape) for name, shape in SHAPES.items()} | (log_alpha or {}),
        learned={name: torch.ones(shape, dtype=torch.bool) for name, shape in SHAPES.items()} | (learned or {}),
        block=order * NUM_BLOCKS // NUM_NEURONS,
    )


def at(all_gates, values):
    """Each layer's gates at given values, in the shapes of their kinds."""
    return [
        LayerGates(
            **{name: values[name][index] for name in GATE_KINDS if name != "neurons"},
            neurons=values["neurons"][index][block],
        )
        for index, block in enumerate(all_gates.block)
    ]


def as_numbers(states):
    return {name: value.float() for name, value in states.items()}


def random_states(seed, share=0.6):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) < share for name, shape in SHAPES.items()}


def all_open(value=1.0):
    return {name: torch.full(shape, value) for name, shape in SHAPES.items()}


def logits(model, batch, **kwargs):
    """At the text rows, the only ones that mean anything."""
    outputs = model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False, **kwargs)
    rows = batch["attention_mask"].bool() & (batch["input_ids"] != model.config.image_token_id)
    return outputs.logits[rows]


def relative(a, b):
    return float((a - b).norm() / b.norm())


DENSE = VisualPlan.dense(NUM_LAYERS)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("images", [(1,), (0, 1, 2)])
def test_open_gates_are_the_dense_model(images, padding_side):
    model, batch = tiny_student(), tiny_batch(images, padding_side=padding_side)
    dense, opened = logits(model, batch), logits(model, batch, gates=at(gates(), all_open()))
    assert relative(opened, dense) < 1e-6
    weight = model.model.language_model.layers[0].self_attn.k_proj.weight
    of_dense, of_opened = (torch.autograd.grad(output.pow(2).sum(), weight)[0] for output in (dense, opened))
    assert relative(of_opened, of_dense) < 1e-5


@pytest.mark.parametrize("base", [DENSE, VisualPlan((LayerPlan(radius=1),) * NUM_LAYERS)], ids=["dense", "radius 1"])
@pytest.mark.parametrize("num_kv_heads", [2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_shut_and_open_gates_equal_the_compact_plan(seed, num_kv_heads, base):
    model, batch = tiny_student(num_kv_heads=num_kv_heads), tiny_batch((0, 1, 2), seed=seed, padding_side="left")
    states = random_states(seed)
    states["heads"] = torch.rand(NUM_LAYERS, num_kv_heads, generator=torch.Generator().manual_seed(seed)) < 0.6
    all_gates = gates(log_alpha={"heads": torch.zeros(NUM_LAYERS, num_kv_heads)}, learned={"heads": states["heads"]})
    with model.use_plan(base), torch.no_grad():
        gated = logits(model, batch, gates=at(all_gates, as_numbers(states)))
    with model.use_plan(all_gates.plan(states, base)), torch.no_grad():
        compact = logits(model, batch)
    assert relative(gated, compact) < 1e-5


@pytest.mark.parametrize("kind", GATE_KINDS)
def test_each_kind_of_gate_does_something(kind):
    """Negative control of the two tests above, and of kinds of gates that would be wired to nothing."""
    model, batch = tiny_student(), tiny_batch((1, 2))
    states = all_open()
    states[kind] = states[kind].clone()
    states[kind][0] = 0.0
    with torch.no_grad():
        assert relative(logits(model, batch, gates=at(gates(), states)), logits(model, batch)) > 1e-3


@pytest.mark.parametrize("kind", GATE_KINDS)
def test_gradient_of_each_gate_by_finite_differences(kind):
    model, batch = tiny_student().double(), tiny_batch((1, 2))
    batch["pixel_values"] = batch["pixel_values"].double()
    generator = torch.Generator().manual_seed(1)
    soft = {
        name: 0.2 + 0.6 * torch.rand(shape, generator=generator, dtype=torch.double) for name, shape in SHAPES.items()
    }
    structure = gates()

    def loss(values):
        return logits(model, batch, gates=at(structure, values)).pow(2).mean()

    values = soft[kind].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(soft | {kind: values}), values)
    step = 1e-2  # norms are fp32 inside: a smaller one drowns in their rounding
    for place in itertools.product(*map(range, SHAPES[kind])):
        shift = torch.zeros_like(values)
        shift[place] = step
        with torch.no_grad():
            slope = (loss(soft | {kind: soft[kind] + shift}) - loss(soft | {kind: soft[kind] - shift})) / (2 * step)
        assert abs(float(slope - gradient[place])) <= 1e-2 * gradient.abs().max()


def test_a_gate_at_zero_has_a_finite_gradient():
    model, batch = tiny_student(), tiny_batch((1,))
    closed = gates(log_alpha={name: torch.full(shape, -9.0) for name, shape in SHAPES.items()}).eval()
    logits(model, batch, gates=closed()).sum().backward()
    for parameter in closed.parameters():
        assert torch.isfinite(parameter.grad).all()


def test_draws_are_open_as_often_as_said_and_eval_mode_draws_nothing():
    torch.manual_seed(0)
    all_gates = gates(log_alpha={"heads": torch.tensor([[-2.0, -1.0], [0.0, 1.0], [2.0, 5.0]])})
    draws = torch.stack([torch.stack([layer.heads for layer in all_gates()]) for _ in range(4000)])
    assert ((draws > 0).float().mean(0) - all_gates.open_probability()["heads"]).abs().max() < 0.03
    assert draws.min() == 0 and draws.max() == 1
    all_gates.eval()
    first, second = (torch.stack([layer.heads for layer in all_gates()]) for _ in range(2))
    assert torch.equal(first, second)


def test_what_is_not_learned_stays_as_it_starts():
    learned = {"heads": torch.zeros(NUM_LAYERS, NUM_UNITS, dtype=torch.bool)}
    heads = torch.tensor([[2.0, -2.0], [2.0, 2.0], [-2.0, 2.0]])
    all_gates = gates(log_alpha={"heads": heads}, learned=learned)
    for index, layer in enumerate(all_gates()):
        assert torch.equal(layer.heads, (heads[index] > 0).float())
    assert torch.equal(all_gates.open_probability()["heads"], (heads > 0).float())


def test_gates_stay_fp32_beside_a_bfloat16_model():
    model, batch = tiny_student().to(torch.bfloat16), tiny_batch((1,))
    batch["pixel_values"] = batch["pixel_values"].to(torch.bfloat16)
    all_gates = gates()
    output = logits(model, batch, gates=all_gates())
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert {parameter.dtype for parameter in all_gates.parameters()} == {torch.float32}
    assert all(torch.isfinite(parameter.grad).all() for parameter in all_gates.parameters())


def test_gates_shut_only_what_a_plan_leaves_open():
    model, batch = tiny_student(), tiny_batch((1,))
    with model.use_plan(DENSE.replace(1, ffn=0)), pytest.raises(ValueError, match="layer 1"):
        logits(model, batch, gates=gates()())
    with pytest.raises(ValueError, match="2 layers"):
        logits(model, batch, gates=gates()()[:2])


def test_checkpointed_layers_give_the_gates_the_same_gradient():
    model, batch = tiny_student(), tiny_batch((1, 2))
    model.train()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        all_gates = gates().eval()
        logits(model, batch, gates=all_gates()).pow(2).sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in all_gates.parameters()]))
    assert relative(*gradients) < 1e-5


def test_the_plan_of_shut_gates_costs_nothing():
    shape = DecoderShape.from_config(tiny_student().config.text_config)
    all_gates = gates()
    assert visual_fraction(all_gates.plan(all_open(0.0), DENSE), shape, [((3, 3),)]) == 0
    opened = {name: torch.ones(shape_, dtype=torch.bool) for name, shape_ in SHAPES.items()}
    assert all_gates.plan(opened, DENSE) == DENSE
