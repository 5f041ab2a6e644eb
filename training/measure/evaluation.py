"""Accuracy of generated answers, per family, with 95 % intervals; dense and sparse models alike.

The last question of every sample is asked (earlier turns, where there are any, stand before it with their true
answers) and the answer is decoded greedily to its end token: nothing is teacher-forced. A family's accuracy is the
mean score of its questions (`data.benchmarks.shapes`); the overall accuracy is the mean over all questions of all
families, so a family weighs what it counts.

Intervals are Wilson score intervals (Wilson 1927) over questions. For right-or-wrong scores that is the interval's own
case; for fractional ones (captions) it is conservative, because a variable in [0, 1] of mean p varies by at most
p(1 - p). Questions about one picture are taken as independent.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from rich.progress import track
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin

from checkpoints.families import sparse_class
from data.benchmarks.shapes import score
from data.collator import Collator
from data.conversations import Sample, encode_prompt
from data.shapes.questions import QUESTION_FAMILIES
from modeling.user_error import UserError
from training.files import write_json

NORMAL_QUANTILE = 1.959963984540054  # two-sided 95 %

# Room past the longest true answer: for the end token, and because a tokenizer may cut words into more tokens elsewhere.
RUN_ON_TOKENS = 4


class Accuracy(NamedTuple):
    """A mean score in [0, 1], its 95 % interval, and the number of questions behind it."""

    accuracy: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Record:
    """One question and what became of it. `image`: the file of the first picture, where there is one."""

    id: str
    family: str
    question: str
    answer: str
    prediction: str
    score: float
    image: str | None


@dataclass(frozen=True)
class Evaluation:
    """Overall accuracy with its interval, the same per family, and every record."""

    overall: Accuracy
    families: dict[str, Accuracy]
    records: tuple[Record, ...]

    @property
    def accuracy(self) -> float:
        return self.overall.accuracy

    @property
    def low(self) -> float:
        return self.overall.low

    @property
    def high(self) -> float:
        return self.overall.high

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Evaluation":
        """Summarises records; families come in the order of `data.shapes.questions`."""
        records = tuple(records)
        scores = {name: [r.score for r in records if r.family == name] for name in QUESTION_FAMILIES}
        return cls(
            overall=wilson([r.score for r in records]),
            families={name: wilson(values) for name, values in scores.items() if values},
            records=records,
        )

    def to_dict(self) -> dict:
        return {
            **self.overall._asdict(),
            "families": {name: accuracy._asdict() for name, accuracy in self.families.items()},
            "records": [asdict(record) for record in self.records],
        }

    def save(self, path: Path) -> None:
        """Writes JSON, whole or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> "Evaluation":
        """Reads what `save` wrote; the figures are counted again from the records."""
        return cls.of(Record(**record) for record in json.loads(path.read_text(encoding="utf-8"))["records"])


def wilson(scores: Sequence[float]) -> Accuracy:
    """Mean of scores in [0, 1] with its 95 % Wilson score interval.

    (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)

    Raises:
        UserError: there are no scores.
    """
    if not scores:
        raise UserError("evaluation: no questions to score")
    n, z = len(scores), NORMAL_QUANTILE
    mean = math.fsum(scores) / n
    centre = mean + z * z / (2 * n)
    half = z * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Rounding must not leave the mean outside its interval where all scores are 0, or all 1.
    return Accuracy(mean, min(mean, max(0.0, (centre - half) / scale)), max(mean, min(1.0, (centre + half) / scale)), n)


def relative_accuracy(model: Evaluation, reference: Evaluation) -> float | None:
    """Accuracy as a fraction of the reference's, on the same questions; None where the reference scores nothing."""
    assert len(model.records) == len(reference.records)
    return model.accuracy / reference.accuracy if reference.accuracy else None


def evaluate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    max_new_tokens: int | None = None,
    pixel_transform: Literal["grey"] | None = None,
    title: str = "evaluate",
) -> Evaluation:
    """Asks the model every sample's last question and scores what it generates.

    Args:
        batch_size: questions generated together; it changes the time, not the answers.
        max_new_tokens: longest answer in tokens, end token included. None: per family, the longest true answer
            plus room for the model to run on past it (and so be wrong).
        pixel_transform: "grey" shows pictures of one colour, the mean colour the processor normalises by: what a
            model scores then, it scores without seeing.
        title: what the progress bar says.

    Returns:
        Records in the order of `samples`.

    Raises:
        UserError: no samples, or a sample whose family has no metric.
    """
    for sample in samples:
        if sample.family not in QUESTION_FAMILIES:
            raise UserError(
                f"sample {sample.id}: got family {sample.family!r}, allowed: {', '.join(QUESTION_FAMILIES)} "
                "(the family says how an answer is scored)"
            )
    limits = (
        _token_limits(processor, samples)
        if max_new_tokens is None
        else dict.fromkeys(QUESTION_FAMILIES, max_new_tokens)
    )
    collate = Collator(processor, padding_side="left")
    training = model.training
    model.eval()
    predictions: dict[int, str] = {}
    for indices in track(_batches(samples, batch_size), description=title):
        batch = collate([encode_prompt(samples[index], processor) for index in indices])
        limit = limits[samples[indices[0]].family]
        predictions |= zip(indices, _generate(model, processor, batch, limit, pixel_transform), strict=True)
    model.train(training)
    return Evaluation.of(_record(sample, predictions[index]) for index, sample in enumerate(samples))


def _token_limits(processor: ProcessorMixin, samples: Sequence[Sample]) -> dict[str, int]:
    """New tokens allowed per family: an answer must end by itself to be right, so none is cut into a right one."""
    limits: dict[str, int] = {}
    for sample in samples:
        tokens = processor.tokenizer(sample.turns[-1][1], add_special_tokens=False)["input_ids"]
        limits[sample.family] = max(limits.get(sample.family, 0), len(tokens) + RUN_ON_TOKENS)
    return limits


def _batches(samples: Sequence[Sample], batch_size: int) -> list[list[int]]:
    """Indices of the samples of each batch: of one family, which ends its answers alike, and near in length."""
    batches = []
    for family in QUESTION_FAMILIES:
        indices = [index for index, sample in enumerate(samples) if sample.family == family]
        # Images and characters stand for tokens: near enough to sort by, without encoding a sample twice.
        indices.sort(key=lambda index: (len(samples[index].images), len(str(samples[index].turns))), reverse=True)
        batches += [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    return batches


def _generate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    batch: dict[str, torch.Tensor],
    max_new_tokens: int,
    pixel_transform: Literal["grey"] | None,
) -> list[str]:
    """Greedy answers to a left-padded batch of prompts."""
    inputs = {name: value.to(model.device) for name, value in batch.items()}
    if "pixel_values" in inputs:
        pixels = inputs["pixel_values"].to(model.dtype)
        inputs["pixel_values"] = torch.zeros_like(pixels) if pixel_transform == "grey" else pixels
    inputs |= sparse_class(model.config).stock_inputs(model.config, inputs["input_ids"])
    tokenizer = processor.tokenizer
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    generated = model.generate(**inputs, generation_config=greedy)  # [B, T + new]
    answers = generated[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]


def _record(sample: Sample, prediction: str) -> Record:
    question, answer = sample.turns[-1]
    return Record(
        id=sample.id,
        family=sample.family,
        question=question,
        answer=answer,
        prediction=prediction,
        score=score(sample.family, prediction, answer),
        image=str(sample.images[0]) if sample.images else None,
    )
