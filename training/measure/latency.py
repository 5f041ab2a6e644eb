"""Predicts how long a plan's prefill takes on this machine.

A small table of timings is measured once, and the time of any other plan is interpolated from it. Five kinds of plans
are timed. In each of them, all layers are alike.

1. Text alone.
2. With visual keys of some units, which text reads.
3. With visual queries of some units too.
4. As kind 2 with all units, with an FFN of some neurons.
5. The dense plan with a share of the visual tokens.

The seconds that kinds 2 to 4 add are divided by the number of layers that do the work. This gives seconds per layer.
Kind 5 tells which share of these seconds is left with fewer visual tokens. Between the timed counts the seconds are
linear, so an expected time has gradients.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from modeling.layer_plan import LayerPlan, Rank
from modeling.visual_flops import Work
from modeling.visual_plan import VisualPlan
from training.files import reading, write_json
from training.measure.clock.prompt import Prompt, prefill_decoder
from training.measure.clock.timing import interleaved_seconds
from training.measure.costs import TEXT_TOKENS

POINTS, REPEATS = 4, 9
"""How many counts of units and of neurons are timed, and how often each plan is timed."""
TOKEN_SHARES = (0.25, 0.5, 0.75)
"""Shares of the visual tokens that are timed."""


@dataclass(frozen=True)
class LatencyTable:
    """Timings of one sample's prefill.

    Attributes:
        dense: seconds under the dense plan.
        text: seconds of text alone.
        keys: (count, seconds per layer) pairs from count 0 on. They tell what visual keys of that many units add.
        queries: the same for visual queries of that many units.
        neurons: the same for an FFN of that many neurons.
        tokens: (share of the visual tokens, share of the seconds that visual work adds) pairs from (0, 0) to (1, 1).
    """

    dense: float
    text: float
    keys: tuple[tuple[int, float], ...]
    queries: tuple[tuple[int, float], ...]
    neurons: tuple[tuple[int, float], ...]
    tokens: tuple[tuple[float, float], ...] = ((0.0, 0.0), (1.0, 1.0))

    def layer_seconds(self, work: Work, tokens: float) -> float | torch.Tensor:
        """Returns the predicted seconds that visual work adds to a layer.

        Args:
            work: the layer's work for all visual tokens. If it is given in tensors, the result is a tensor.
            tokens: the share of the visual tokens that the layer carries.
        """
        added = _interpolated(self.keys, work.key_units)
        added = added + _interpolated(self.queries, work.query_units) + _interpolated(self.neurons, work.neurons)
        return added * _interpolated(self.tokens, tokens)

    def share(self, seconds: Sequence[float | torch.Tensor]) -> float | torch.Tensor:
        """Returns the predicted seconds of a prefill as a share of the dense plan's, given each layer's seconds."""
        return sum(seconds, start=self.text) / self.dense

    def save(self, path: Path) -> None:
        """Writes the table as a JSON file, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "LatencyTable":
        """Returns the table that `save` wrote. Raises UserError if the file is damaged.

        In older files without `tokens`, the time of visual work is in proportion to the number of visual tokens.
        """
        with reading(path, "delete it and the result of `calibrate` in stages/, and it is measured again"):
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                **{
                    name: tuple(map(tuple, value)) if isinstance(value, list) else value
                    for name, value in values.items()
                }
            )


def measure_latency(model: PreTrainedModel) -> LatencyTable:
    """Returns the timings of the decoder's prefill of one picture and 64 text tokens.

    Args:
        model: a sparse model. The plan in force is restored, and the model is put in eval mode.
    """
    text = model.config.text_config
    num_layers, units, neurons = text.num_hidden_layers, text.num_key_value_heads, text.intermediate_size
    unit_counts = sorted({round(units * point / POINTS) for point in range(1, POINTS + 1)} - {0})
    neuron_counts = sorted({round(neurons * point / POINTS) for point in range(1, POINTS + 1)} - {0})

    def uniform_plan(**fields) -> VisualPlan:
        return VisualPlan(layers=(LayerPlan(**fields),) * num_layers)

    plans = {"dense": uniform_plan(), "text": uniform_plan(tokens=0.0)}
    plans |= {f"keys {count}": uniform_plan(heads=count, attend=False, ffn=0) for count in unit_counts}
    plans |= {f"queries {count}": uniform_plan(heads=count, ffn=0) for count in unit_counts}
    plans |= {f"neurons {count}": uniform_plan(attend=False, ffn=count) for count in neuron_counts}
    plans |= {f"tokens {share}": _with_tokens(share, num_layers) for share in TOKEN_SHARES}
    prompt = Prompt.random(model, 1, TEXT_TOKENS)

    def prefill(plan: VisualPlan) -> None:
        with model.use_plan(plan):
            prefill_decoder(model, prompt)

    model.eval()
    calls = {name: lambda plan=plan: prefill(plan) for name, plan in plans.items()}
    seconds = {
        name: statistics.median(times) for name, times in interleaved_seconds(calls, REPEATS, model.device).items()
    }
    keys = {count: seconds[f"keys {count}"] for count in unit_counts}
    visual_seconds = max(seconds["dense"] - seconds["text"], 0.0)
    # Nothing reads what the last layer would update, so it has no visual queries and no visual FFN in any plan.
    return LatencyTable(
        dense=seconds["dense"],
        text=seconds["text"],
        keys=_rising_pairs({count: (keys[count] - seconds["text"]) / num_layers for count in unit_counts}),
        queries=_rising_pairs(
            {count: (seconds[f"queries {count}"] - keys[count]) / (num_layers - 1) for count in unit_counts}
        ),
        neurons=_rising_pairs(
            {count: (seconds[f"neurons {count}"] - keys[units]) / (num_layers - 1) for count in neuron_counts}
        ),
        tokens=_shares_of_seconds(
            {share: seconds[f"tokens {share}"] - seconds["text"] for share in TOKEN_SHARES}, visual_seconds
        ),
    )


def _with_tokens(share: float, num_layers: int) -> VisualPlan:
    """Returns the dense plan with this share of the visual tokens in every layer. Choosing the tokens costs no time."""
    first = LayerPlan(tokens=share, rank=Rank(by="uniform"))
    return VisualPlan(layers=(first, *(LayerPlan(tokens=share),) * (num_layers - 1)))


def _shares_of_seconds(seconds: dict[float, float], seconds_of_all: float) -> tuple[tuple[float, float], ...]:
    """Returns (share of tokens, share of seconds) pairs from (0, 0) to (1, 1) that never fall.

    The shares of seconds are the shares of tokens if visual work took no time at all.
    """
    pairs = [(0.0, 0.0)]
    for share, value in sorted(seconds.items()):
        left = min(value / seconds_of_all, 1.0) if seconds_of_all > 0 else share
        pairs.append((share, max(left, pairs[-1][1])))
    return (*pairs, (1.0, 1.0))


def _rising_pairs(seconds: dict[int, float]) -> tuple[tuple[int, float], ...]:
    """Returns (count, seconds) pairs from (0, 0) on whose seconds never fall.

    If more work was measured to take less time, that is noise.
    """
    pairs = [(0, 0.0)]
    for count, value in sorted(seconds.items()):
        pairs.append((count, max(value, pairs[-1][1])))
    return tuple(pairs)


def _interpolated(pairs: tuple[tuple[int, float], ...], count: float | torch.Tensor) -> float | torch.Tensor:
    """Returns the piecewise linear function through `pairs` at `count`, a number or scalar tensor in their range."""
    value = count.item() if isinstance(count, torch.Tensor) else count
    segment = next((index for index, (end, _) in enumerate(pairs[1:]) if value <= end), len(pairs) - 2)
    (low, first), (high, last) = pairs[segment], pairs[segment + 1]
    return first + (last - first) * (count - low) / (high - low)
