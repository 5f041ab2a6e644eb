"""Plans drawn from the whole contract, for equivalence tests."""

import random

from modeling.visual_plan import VisualPlan


def _ranking(above: dict | None, draw: random.Random) -> dict:
    """One that the layer above allows; by its attention more often than not."""
    by_attention = []
    if above and above["heads"] not in (0, []):
        if above["read"]:
            by_attention += [{"by": "text_attention", "rows": draw.choice(["last", "instruction"])}]
        if above["attend"]:
            by_attention += [{"by": "image_attention"}]
    placed = [{"by": "uniform"}, {"by": "random", "seed": draw.randrange(100)}]
    return draw.choice(by_attention if by_attention and draw.random() < 0.8 else placed)


def random_plan(seed: int, num_layers: int, num_units: int, num_neurons: int) -> VisualPlan:
    """Every field varies; lists and integers, falling tokens, blind, frozen and near-sighted layers."""
    draw = random.Random(seed)
    layers, tokens = [], 1.0
    for _ in range(num_layers):
        layer = {"tokens": tokens}
        above = layers[-1] if layers else None
        if draw.random() < (0.5 if above else 0.15):
            tokens = layer["tokens"] = draw.choice([0.0, 0.7, 0.4, 0.1] if above else [0.7, 0.4]) * tokens
            layer["rank"] = _ranking(above, draw)
        layer["attend"] = draw.random() < 0.7
        layer["read"] = draw.random() < 0.7
        layer["heads"] = draw.choice(
            [None, draw.randint(0, num_units), draw.sample(range(num_units), draw.randint(0, num_units))]
        )
        layer["ffn"] = draw.choice(
            [None, 0, draw.randint(0, num_neurons), draw.sample(range(num_neurons), draw.randint(1, num_neurons))]
        )
        layer["radius"] = draw.choice([None, 0, 1, 2])
        layer["bidirectional"] = layer["radius"] is not None and draw.random() < 0.5
        layers.append(layer)
    return VisualPlan.from_dict({"layers": layers})
