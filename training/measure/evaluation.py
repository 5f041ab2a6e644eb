"""Measures the accuracy of generated answers, per family of questions, with 95 % intervals.

Dense and sparse models are treated alike. The last question of every sample is asked. If the sample has earlier
turns, they stand before it with their true answers. The answer is decoded greedily to its end token, so nothing is
teacher-forced. A family's accuracy is the mean score of its questions (`data.benchmarks.shapes`). The overall
accuracy is the mean over all questions of all families, so a family counts in proportion to its number of questions.

Intervals are Wilson score intervals over questions (Wilson 1927). They are made for scores that are right or wrong. For
fractional scores, as those of captions, they are conservative: a variable in [0, 1] of mean p has a variance of at most
p(1 - p). Questions about one picture are taken as independent.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin

from checkpoints.families import sparse_class
from data.benchmarks.shapes import score
from data.collator import Collator
from data.conversations import encode_prompt
from data.sample import MEDIA, Sample
from data.shapes.questions import QUESTION_FAMILIES
from modeling.user_error import UserError
from training.files import write_json
from training.progress import Progress
from training.ranks import of_all_ranks, own_share

NORMAL_QUANTILE = 1.959963984540054  # two-sided 95 %

RUN_ON_TOKENS = 4
"""New tokens that are allowed beyond the longest true answer.

One is the end token. The others are needed because a tokenizer may split the same words into more tokens elsewhere.
"""


class Accuracy(NamedTuple):
    """A mean score in [0, 1], the ends of its 95 % interval, and the number of questions."""

    accuracy: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Record:
    """One question, its true answer, the model's answer, and the score of that in [0, 1].

    `image` is the file of the sample's first picture. It is None if there is no picture, or it lies within its row.
    """

    id: str
    family: str
    question: str
    answer: str
    prediction: str
    score: float
    image: str | None


@dataclass(frozen=True)
class Evaluation:
    """The overall accuracy with its interval, the same per family, and every record."""

    overall: Accuracy
    families: dict[str, Accuracy]
    records: tuple[Record, ...]

    @property
    def accuracy(self) -> float:
        """The overall accuracy in [0, 1]."""
        return self.overall.accuracy

    @property
    def low(self) -> float:
        """The lower end of the overall accuracy's interval."""
        return self.overall.low

    @property
    def high(self) -> float:
        """The upper end of the overall accuracy's interval."""
        return self.overall.high

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Evaluation":
        """Returns the evaluation of these records. Families come in the order of `data.shapes.questions`.

        Raises:
            UserError: there are no records.
        """
        records = tuple(records)
        scores = {name: [r.score for r in records if r.family == name] for name in QUESTION_FAMILIES}
        return cls(
            overall=wilson([r.score for r in records]),
            families={name: wilson(values) for name, values in scores.items() if values},
            records=records,
        )

    def to_dict(self) -> dict:
        """Returns the JSON object."""
        return {
            **self.overall._asdict(),
            "families": {name: accuracy._asdict() for name, accuracy in self.families.items()},
            "records": [asdict(record) for record in self.records],
        }

    def save(self, path: Path) -> None:
        """Writes the JSON file, whole or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> "Evaluation":
        """Returns the evaluation that `save` wrote. The figures are computed again from the records."""
        return cls.of(Record(**record) for record in json.loads(path.read_text(encoding="utf-8"))["records"])


def wilson(scores: Sequence[float]) -> Accuracy:
    """Returns the mean of scores in [0, 1] with its 95 % Wilson score interval.

    With the mean p of n scores and the normal quantile z, the interval's ends are:

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
    # If all scores are 0 or all are 1, rounding must not leave the mean outside its interval.
    return Accuracy(mean, min(mean, max(0.0, (centre - half) / scale)), max(mean, min(1.0, (centre + half) / scale)), n)


def relative_accuracy(model: Evaluation, reference: Evaluation) -> float | None:
    """Returns the accuracy as a share of the reference's on the same questions. It may exceed 1.

    Returns None if the reference's accuracy is 0.
    """
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
    """Asks the model every sample's last question and scores the answers that it generates.

    Every rank calls this with the same samples, and answers its share of them. All ranks get all answers. The records
    are in the order of `samples`. The model keeps its mode, training or eval.

    Args:
        model: a stock or a sparse model.
        batch_size: number of questions that are answered together. It changes the time, not the answers.
        max_new_tokens: longest answer in tokens, including the end token. None takes, for each family, the longest true
            answer plus some tokens, so that a model can run past the right answer and be wrong.
        pixel_transform: "grey" replaces every picture, and every frame of a video, by one of a single colour, the mean
            by which the processor normalises. A model's accuracy is then its accuracy without seeing. None leaves
            pictures as they are.
        title: text beside the progress bar.

    Raises:
        UserError: no samples, or a sample whose family has no metric.
    """
    refuse_unscorable(samples)
    limits = (
        _token_limits(processor, samples)
        if max_new_tokens is None
        else dict.fromkeys(QUESTION_FAMILIES, max_new_tokens)
    )
    collate = Collator(processor, padding_side="left")
    training = model.training
    model.eval()
    own_predictions: dict[int, str] = {}
    own_batches = own_share(_batches(samples, batch_size))
    for _, indices in Progress(own_batches, desc=title, unit="batch"):
        batch = collate([encode_prompt(samples[index], processor) for index in indices])
        limit = limits[samples[indices[0]].family]
        own_predictions |= zip(indices, _generate(model, processor, batch, limit, pixel_transform), strict=True)
    model.train(training)
    predictions = {index: text for own in of_all_ranks(own_predictions) for index, text in own.items()}
    return Evaluation.of(_record(sample, predictions[index]) for index, sample in enumerate(samples))


def refuse_unscorable(samples: Sequence[Sample]) -> None:
    """Raises UserError if the answers to a sample could not be scored."""
    for sample in samples:
        if sample.family not in QUESTION_FAMILIES:
            raise UserError(
                f"sample {sample.id}: got family {sample.family!r}, allowed: {', '.join(QUESTION_FAMILIES)} "
                "(the family says how an answer is scored)"
            )


def _token_limits(processor: ProcessorMixin, samples: Sequence[Sample]) -> dict[str, int]:
    """Returns how many new tokens an answer may have, by family.

    An answer must end by itself to be right. The limit is larger than every true answer, so no wrong answer is cut
    off and becomes right.
    """
    limits: dict[str, int] = {}
    for sample in samples:
        tokens = processor.tokenizer(sample.turns[-1][1], add_special_tokens=False)["input_ids"]
        limits[sample.family] = max(limits.get(sample.family, 0), len(tokens) + RUN_ON_TOKENS)
    return limits


def _batches(samples: Sequence[Sample], batch_size: int) -> list[list[int]]:
    """Returns the indices of the samples of each batch.

    A batch has samples of one family, whose answers end at about the same length, and of similar prompt length.
    """
    batches = []
    for family in QUESTION_FAMILIES:
        indices = [index for index, sample in enumerate(samples) if sample.family == family]
        # The numbers of files and characters stand for the number of tokens, which would need a second encoding.
        indices.sort(key=lambda index: _prompt_size(samples[index]), reverse=True)
        batches += [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    return batches


def _prompt_size(sample: Sample) -> tuple[int, ...]:
    """Returns how many files of each medium a sample shows, and how many characters it has."""
    return *(len(sample.files(medium)) for medium in MEDIA[::-1]), len(str(sample.turns))


def _generate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    batch: dict[str, torch.Tensor],
    max_new_tokens: int,
    pixel_transform: Literal["grey"] | None,
) -> list[str]:
    """Returns the greedy answers to a left-padded batch of prompts."""
    inputs = {name: value.to(model.device) for name, value in batch.items()}
    for name in inputs.keys() & {"pixel_values", "pixel_values_videos"}:
        pixels = inputs[name].to(model.dtype)
        inputs[name] = torch.zeros_like(pixels) if pixel_transform == "grey" else pixels
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
    """Returns the scored record of a sample's last question."""
    question, answer = sample.turns[-1]
    return Record(
        id=sample.id,
        family=sample.family,
        question=question,
        answer=answer,
        prediction=prediction,
        score=score(sample.family, prediction, answer),
        image=next((str(picture) for picture in sample.images[:1] if isinstance(picture, Path)), None),
    )
