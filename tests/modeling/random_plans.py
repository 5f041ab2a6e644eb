"""Plans drawn from the whole contract, for equivalence tests."""

import random

from modeling.visual_plan import VisualPlan


def random_plan(seed: int, num_layers: int, num_units: int, num_neurons: int) -> VisualPlan:
    """Every field varies; lists and integers, falling tokens, blind, frozen and near-sighted layers."""
    draw = random.Random(seed)
    layers, tokens = [], 1.0
    for index in range(num_layers):
        layer = {"tokens": tokens}
        above = layers[-1] if layers else None
        if above and above["read"] and above["heads"] not in (0, []) and draw.random() < 0.4:
            tokens = layer["tokens"] = draw.choice([0.0, 0.7, 0.4, 0.1]) * tokens
            layer["rank"] = {"by": "text_attention", "rows": draw.choice(["last", "instruction"])}
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
