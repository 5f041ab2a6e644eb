"""How long a plan's prefill takes here: a small table of timings, taken once, from which other plans are interpolated.

Four kinds of plans are timed, alike in all layers: text alone; visual keys of some units, read by text; besides, visual queries
of some units; besides, an FFN of some neurons. What a kind adds, divided by the layers that do it, is its price per layer;
between the counts that were timed prices are interpolated linearly, so an expected cost can be differentiated.
"""

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from modeling.layer_plan import LayerPlan
from modeling.visual_flops import Work
from modeling.visual_plan import VisualPlan
from training.measure.benchmark import Prompt, prefill_decoder, take_turns
from training.measure.costs import TEXT_TOKENS
from training.run import write_json

POINTS, REPEATS = 4, 9


@dataclass(frozen=True)
class LatencyTable:
    """Seconds of one sample's prefill: `dense`, under the dense plan; `text`, of text alone; and, as (count, seconds per layer)
    pairs from 0 on, what keys of that many units add, queries of that many units, and an FFN of that many neurons."""

    dense: float
    text: float
    keys: tuple[tuple[int, float], ...]
    queries: tuple[tuple[int, float], ...]
    neurons: tuple[tuple[int, float], ...]

    def share(self, works: list[Work]) -> float:
        """Predicted seconds of layers doing `works`, as a share of the dense plan's; a tensor where the works are."""
        seconds = self.text
        for work in works:
            seconds = seconds + _interpolated(self.keys, work.key_units)
            seconds = (
                seconds + _interpolated(self.queries, work.query_units) + _interpolated(self.neurons, work.neurons)
            )
        return seconds / self.dense

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "LatencyTable":
        values = json.loads(path.read_text(encoding="utf-8"))
        pairs = {name: tuple(map(tuple, values[name])) for name in ("keys", "queries", "neurons")}
        return cls(**{**values, **pairs})


def measure_latency(model: PreTrainedModel) -> LatencyTable:
    """Times the decoder's prefill of one picture and 64 text tokens; the plan in force is restored."""
    text = model.config.text_config
    num_layers, units, neurons = text.num_hidden_layers, text.num_key_value_heads, text.intermediate_size
    unit_counts = sorted({round(units * point / POINTS) for point in range(1, POINTS + 1)} - {0})
    neuron_counts = sorted({round(neurons * point / POINTS) for point in range(1, POINTS + 1)} - {0})

    def alike(**layer) -> VisualPlan:
        return VisualPlan(layers=(LayerPlan(**layer),) * num_layers)

    plans = {"dense": alike(), "text": alike(tokens=0.0)}
    plans |= {f"keys {count}": alike(heads=count, attend=False, ffn=0) for count in unit_counts}
    plans |= {f"queries {count}": alike(heads=count, ffn=0) for count in unit_counts}
    plans |= {f"neurons {count}": alike(attend=False, ffn=count) for count in neuron_counts}
    prompt = Prompt.random(model, 1, TEXT_TOKENS)

    def prefill(plan: VisualPlan) -> None:
        with model.use_plan(plan):
            prefill_decoder(model, prompt)

    model.eval()
    calls = {name: lambda plan=plan: prefill(plan) for name, plan in plans.items()}
    seconds = {name: statistics.median(times) for name, times in take_turns(calls, REPEATS, model.device).items()}
    keys = {count: seconds[f"keys {count}"] for count in unit_counts}
    # Nothing reads what the last layer would update: it queries and has an FFN in no plan.
    return LatencyTable(
        dense=seconds["dense"],
        text=seconds["text"],
        keys=_prices({count: (keys[count] - seconds["text"]) / num_layers for count in unit_counts}),
        queries=_prices(
            {count: (seconds[f"queries {count}"] - keys[count]) / (num_layers - 1) for count in unit_counts}
        ),
        neurons=_prices(
            {count: (seconds[f"neurons {count}"] - keys[units]) / (num_layers - 1) for count in neuron_counts}
        ),
    )


def _prices(seconds: dict[int, float]) -> tuple[tuple[int, float], ...]:
    """Pairs from (0, 0) on, never falling: what is measured to save time by doing more is noise."""
    pairs = [(0, 0.0)]
    for count, value in sorted(seconds.items()):
        pairs.append((count, max(value, pairs[-1][1])))
    return tuple(pairs)


def _interpolated(pairs: tuple[tuple[int, float], ...], count: float | torch.Tensor) -> float | torch.Tensor:
    """Piecewise linear through `pairs`, at a number or a scalar tensor within their range."""
    at = count.item() if isinstance(count, torch.Tensor) else count
    place = next((index for index, (known, _) in enumerate(pairs[1:]) if at <= known), len(pairs) - 2)
    (low, first), (high, last) = pairs[place], pairs[place + 1]
    return first + (last - first) * (count - low) / (high - low)
