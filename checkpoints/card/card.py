"""The model card of a sparse checkpoint, README.md.

It holds the metadata that the Hub reads, how the checkpoint is used, the plan, what the plan costs, how the model was
trained, what was measured, and its limits.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig

from checkpoints.card.metadata import Licence, metadata
from checkpoints.card.tables import (
    benchmark_rows,
    comparison_table,
    cost_table,
    markdown,
    plan_table,
    speed_conditions,
    speed_rows,
)
from modeling.visual_plan import VisualPlan

PLACE = "path or Hub id of this checkpoint"
"""What the example loads, until the checkpoint is published."""
MADE = ", made to spend less computation on its visual tokens by Squint."
"""End of the card's first sentence, which begins with the base model."""
OLDEST = {"transformers": "5.17", "torch": "2.11"}
"""The oldest versions that run a checkpoint."""

EXAMPLE = f"""```python
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

checkpoint = "{PLACE}"
device = "cuda" if torch.cuda.is_available() else "cpu"
model = AutoModelForImageTextToText.from_pretrained(checkpoint, trust_remote_code=True, dtype="auto").to(device)
processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)

content = [{{"type": "image", "path": "picture.jpg"}}, {{"type": "text", "text": "What is in the picture?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
).to(device, model.dtype)
answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""

BENCHMARKS_CAPTION = """Dense and sparse model answered the same questions in the same harness. Behind the difference
is its 95 % interval, by a bootstrap over pictures. p is that of McNemar's test; blind is the dense model that is shown
grey pictures."""

LIMITS = """- Accuracy is known for what was measured, and no further. Tasks that need more of a picture may lose more:
  small print, counting, long captions.
- Biases and mistakes of the base model are those of this model.
- The code in this repository runs with `trust_remote_code=True`. Read it, and pin it with `revision=`.
- Engines with a decoder of their own do not know this one's two streams. Use transformers."""


def model_card(
    name: str,
    plan: VisualPlan,
    config: PreTrainedConfig,
    *,
    base_model: str,
    base_license: Licence | None = None,
    datasets: Sequence[str] = (),
    training: Mapping[str, str] = MappingProxyType({}),
    rows: Sequence[dict] = (),
    benchmarks: Mapping[str, dict] = MappingProxyType({}),
    speed: Mapping[str, Any] | None = None,
    picture: str | None = None,
) -> str:
    """Returns the text of README.md.

    Args:
        name: the title.
        plan: the plan in force.
        config: the dense or the sparse config. It holds the model's sizes.
        base_model: folder or Hub id of the dense model. Only a Hub id goes into the metadata.
        base_license: the dense model's licence. It holds for this checkpoint too.
        datasets: Hub ids of the training data.
        training: what is said of the training, by its label.
        rows: rows of the comparison. Each has `name`, `distilled`, `visual_flops`, `model_flops`, `accuracy`, `low`,
            `high`, `relative_accuracy` and `families`, a mapping from a family's name to its accuracy. Shares and
            accuracies are fractions. `relative_accuracy` is None where the dense model answers nothing right.
        benchmarks: name of each benchmark -> its comparison, as `benchmark_rows` takes it.
        speed: what was measured on the clock, as `speed_rows` takes it, with its `environment`.
        picture: file name of the plan's picture beside the card.

    Raises:
        UserError: the plan does not fit the model.
    """
    local = Path(base_model).exists()  # a local path is of no use to others, and may tell what it should not
    data = metadata(
        name,
        config.model_type.removeprefix("sparse_"),
        base_model=None if local else base_model,
        licence=base_license,
        datasets=datasets,
        benchmarks=benchmarks,
    )
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        first_lines(f"`{Path(base_model).name}`" if local else hub_link(base_model), base_license),
        "## How to use it",
        EXAMPLE,
        _versions(),
        "The stock class refuses this checkpoint rather than run it dense.",
        "## Plan",
        "What each decoder layer does for visual tokens. Text is served in full by every layer.",
        *([f"![The plan, layer by layer]({picture})"] if picture else []),
        plan_table(plan, config),
        "## Cost",
        "One picture and 64 text tokens, prefill, in the four conventions of the literature.",
        cost_table(plan, config),
    ]
    if training:
        sections += ["## Training", markdown([("", ""), *training.items()])]
    if rows:
        caption = "Accuracy of generated answers on held-out questions, with its 95 % interval."
        sections += ["## Measured", caption, comparison_table(rows)]
    if benchmarks:
        sections += ["## Benchmarks", BENCHMARKS_CAPTION, markdown(benchmark_rows(benchmarks))]
    if speed is not None:
        sections += ["## Speed and memory", speed_conditions(speed), markdown(speed_rows(speed))]
    return "\n\n".join([*sections, "## Limits", LIMITS]) + "\n"


def first_lines(base: str, licence: Licence | None) -> str:
    """Returns the paragraph below the title.

    Args:
        base: the base model, in Markdown.
    """
    return f"{base}{MADE} " + ("The base model's licence holds." if licence is None else f"Licence: {licence}.")


def hub_link(base_model: str) -> str:
    """Returns a link to a model on the Hub, in Markdown."""
    return f"[{base_model}](https://huggingface.co/{base_model})"


def _versions() -> str:
    made_with = {"transformers": transformers.__version__, "torch": torch.__version__}
    needs = ", ".join(f"{name} ≥ {oldest} (made with {made_with[name]})" for name, oldest in OLDEST.items())
    return f"Needs {needs}."
