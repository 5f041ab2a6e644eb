"""How long a plan's prefill takes on this machine.

A small table of timings is taken once, and the time of any other plan is interpolated from it. Four kinds of plans are
timed, alike in all layers. The first has text alone. The second adds visual keys of some units, which text reads. The
third adds visual queries of some units, the fourth an FFN of some neurons. What a kind adds, divided by the number of
layers that do it, is its price per layer. A fifth kind is the dense plan with a part of the visual tokens: it says what
share of these prices remains. Between the timed counts prices are linear, so an expected cost has gradients.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from modeling.layer_plan import LayerPlan, Rank
from modeling.visual_flops import Work
from modeling.visual_plan import VisualPlan
from training.files import read_json, write_json
from training.measure.benchmark import Prompt, prefill_decoder, take_turns
from training.measure.costs import TEXT_TOKENS

POINTS, REPEATS = 4, 9
TOKEN_SHARES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class LatencyTable:
    """Timings of one sample's prefill.

    Attributes:
        dense, text: seconds under the dense plan, and of text alone.
        keys, queries, neurons: (count, seconds per layer) pairs from 0 on. They say what keys of that many units add,
            queries of that many units, and an FFN of that many neurons.
        tokens: (share of the visual tokens, share of those seconds) pairs from (0, 0) to (1, 1).
    """

    dense: float
    text: float
    keys: tuple[tuple[int, float], ...]
    queries: tuple[tuple[int, float], ...]
    neurons: tuple[tuple[int, float], ...]
    tokens: tuple[tuple[float, float], ...] = ((0.0, 0.0), (1.0, 1.0))

    def share(self, works: Sequence[Work], tokens: Sequence[float]) -> float | torch.Tensor:
        """Returns the predicted seconds of layers that do `works`, as a share of the dense plan's seconds.

        Args:
            works: of each layer, for all visual tokens. Where they are tensors, so is the result.
            tokens: the share of the visual tokens that each layer carries.
        """
        seconds = self.text
        for work, carried in zip(works, tokens, strict=True):
            added = _interpolated(self.keys, work.key_units)
            added = added + _interpolated(self.queries, work.query_units) + _interpolated(self.neurons, work.neurons)
            seconds = seconds + added * _interpolated(self.tokens, carried)
        return seconds / self.dense

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "LatencyTable":
        """Reads what `save` wrote. A table of before `tokens` were timed has time fall in proportion to tokens."""
        values = read_json(path)
        return cls(
            **{name: tuple(map(tuple, value)) if isinstance(value, list) else value for name, value in values.items()}
        )


def measure_latency(model: PreTrainedModel) -> LatencyTable:
    """Returns the timings of the decoder's prefill of one picture and 64 text tokens. The plan in force is restored."""
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
    plans |= {f"tokens {share}": _with_tokens(share, num_layers) for share in TOKEN_SHARES}
    prompt = Prompt.random(model, 1, TEXT_TOKENS)

    def prefill(plan: VisualPlan) -> None:
        with model.use_plan(plan):
            prefill_decoder(model, prompt)

    model.eval()
    calls = {name: lambda plan=plan: prefill(plan) for name, plan in plans.items()}
    seconds = {name: statistics.median(times) for name, times in take_turns(calls, REPEATS, model.device).items()}
    keys = {count: seconds[f"keys {count}"] for count in unit_counts}
    visual = max(seconds["dense"] - seconds["text"], 0.0)
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
        tokens=_shares_left({share: seconds[f"tokens {share}"] - seconds["text"] for share in TOKEN_SHARES}, visual),
    )


def _with_tokens(share: float, num_layers: int) -> VisualPlan:
    """The dense plan with every layer carrying this share of the visual tokens, chosen without any ranking's cost."""
    first = LayerPlan(tokens=share, rank=Rank(by="uniform"))
    return VisualPlan(layers=(first, *(LayerPlan(tokens=share),) * (num_layers - 1)))


def _shares_left(seconds: dict[float, float], of_all: float) -> tuple[tuple[float, float], ...]:
    """Pairs from (0, 0) to (1, 1), never falling; in proportion to the tokens where visual work took no time at all."""
    pairs = [(0.0, 0.0)]
    for share, value in sorted(seconds.items()):
        left = min(value / of_all, 1.0) if of_all > 0 else share
        pairs.append((share, max(left, pairs[-1][1])))
    return (*pairs, (1.0, 1.0))


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
