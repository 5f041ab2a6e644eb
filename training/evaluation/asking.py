"""Asks a model the questions of benchmarks, and scores the answers that it generates.

Dense and sparse models are treated alike. An answer is decoded greedily to its end token, so nothing is teacher-forced.
If a question has earlier turns, they stand before it with their true answers.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin

from checkpoints.families import sparse_class
from data.benchmarks.benchmark import Question, Record
from data.collator import Collator
from data.conversations import encode_prompt
from modeling.user_error import UserError
from training.evaluation.kept_answers import KeptAnswers
from training.evaluation.questions import Asked
from training.evaluation.results import Evaluation
from training.progress import Progress
from training.ranks import of_all_ranks, own_share_by_cost

RUN_ON_TOKENS = 4
"""New tokens that are allowed beyond the longest true answer of a family.

One is the end token. The others are needed because a tokenizer may split the same words into more tokens elsewhere.
"""


class Batch(NamedTuple):
    """Questions that are asked together: their numbers among all questions, and their longest answer in tokens."""

    numbers: list[int]
    max_new_tokens: int


def evaluate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    asked: Sequence[Asked],
    *,
    batch_size: int,
    max_new_tokens: int | None = None,
    pixel_transform: Literal["grey"] | None = None,
    kept: KeptAnswers | None = None,
    title: str = "evaluate",
) -> Evaluation:
    """Asks the model every question and scores the answers.

    Every rank calls this with the same questions, and answers its share of them. All ranks get all answers. The records
    are in the order of the questions. The model keeps its mode, training or eval.

    Args:
        model: a stock or a sparse model.
        batch_size: number of questions that are answered together. It changes the time, not the answers.
        max_new_tokens: longest answer in tokens, including the end token. None takes the benchmark's own. Where that is
            none, it is the longest true answer of the question's family plus some tokens, so that a model can run past
            the right answer and be wrong.
        pixel_transform: "grey" replaces every picture, and every frame of a video, by one of a single colour, the mean
            by which the processor normalises. A model's accuracy is then its accuracy without seeing. None leaves
            pictures as they are.
        kept: where answers are kept, so that a killed evaluation goes on. None keeps none.
        title: text beside the progress bar.

    Raises:
        UserError: there are no questions, or a picture is bad.
    """
    questions = [(part, question) for part in asked for question in part.questions]
    batches = list(_batches(asked, processor, batch_size, max_new_tokens))
    known = {} if kept is None else kept.known()
    # What an earlier start has left is divided anew: it may have had more processes, and one that was behind.
    left = [(number, batch) for number, batch in enumerate(batches) if number not in known]
    # A question's prefill takes about as long as a step of decoding.
    own = [batch for _, batch in own_share_by_cost(left, lambda pair: len(pair[1].numbers) + pair[1].max_new_tokens)]
    collate = Collator(processor, padding_side="left")
    training = model.training
    model.eval()
    own_answers: dict[int, list[str]] = {}
    progress = Progress(None, desc=title, unit="question", total=sum(len(batch.numbers) for _, batch in own))
    for number, batch in own:
        inputs = collate([_prompt(*questions[index], processor) for index in batch.numbers])
        own_answers[number] = generate(model, processor, inputs, batch.max_new_tokens, pixel_transform)
        if kept is not None:
            kept.keep(number, own_answers[number])
        progress.update(len(batch.numbers))
    progress.close()
    model.train(training)
    answers = known | {number: texts for share in of_all_ranks(own_answers) for number, texts in share.items()}
    predictions = {
        index: text
        for number, batch in enumerate(batches)
        for index, text in zip(batch.numbers, answers[number], strict=True)
    }
    ordered = iter(predictions[index] for index in range(len(questions)))
    return Evaluation.of(_record(part, question, next(ordered)) for part in asked for question in part.questions)


def check_prompts(asked: Sequence[Asked], processor: ProcessorMixin) -> None:
    """Encodes the first question of each benchmark, as the model would be asked it.

    Raises:
        UserError: the model cannot be shown it: its chat template does not fit, or it has no token for pictures.
    """
    collate = Collator(processor, padding_side="left")
    for part in asked:
        collate([_prompt(part, part.questions[0], processor)])


def generate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    batch: dict[str, torch.Tensor],
    max_new_tokens: int,
    pixel_transform: Literal["grey"] | None = None,
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


def _batches(
    asked: Sequence[Asked], processor: ProcessorMixin, batch_size: int, max_new_tokens: int | None
) -> Iterator[Batch]:
    """Yields the batches of all questions, the same ones for any number of ranks.

    A batch has questions of one family, whose answers end at about the same length, and of similar prompt length.
    """
    first = 0
    for part in asked:
        families: dict[str | None, list[int]] = {}
        for index, question in enumerate(part.questions):
            families.setdefault(question.family, []).append(index)
        for indices in families.values():
            limit = max_new_tokens or _token_limit(part, indices, processor)
            # The numbers of files and characters stand for that of tokens, which would need a second encoding.
            indices.sort(key=lambda index: _size(part.questions[index]), reverse=True)
            for start in range(0, len(indices), batch_size):
                yield Batch([first + index for index in indices[start : start + batch_size]], limit)
        first += len(part.questions)


def _prompt(part: Asked, question: Question, processor: ProcessorMixin) -> dict[str, torch.Tensor]:
    """Returns a question as the model is asked it. A UserError names the benchmark."""
    try:
        return encode_prompt(question.sample(), processor)
    except UserError as error:
        raise UserError(f"{part.benchmark.name}: {error}") from error


def _size(question: Question) -> tuple[int, int, int]:
    return len(question.videos), len(question.images), len(str((*question.earlier, question.text)))


def _token_limit(part: Asked, indices: Sequence[int], processor: ProcessorMixin) -> int:
    """Returns how many new tokens an answer may have.

    Where the benchmark says nothing, an answer must end by itself to be right. The limit is larger than every true
    answer, so no wrong answer is cut off and becomes right.
    """
    if part.benchmark.max_new_tokens is not None:
        return part.benchmark.max_new_tokens[part.style]
    answers = [answer for index in indices for answer in part.questions[index].answers]
    lengths = map(len, processor.tokenizer(answers, add_special_tokens=False)["input_ids"])
    return max(lengths) + RUN_ON_TOKENS


def _record(part: Asked, question: Question, prediction: str) -> Record:
    """Returns the scored record of a question."""
    benchmark = part.benchmark
    judgement = benchmark.judge(question, prediction) if question.answers else None
    image = question.images[0] if question.images else None
    return Record(
        benchmark=benchmark.name,
        id=question.id,
        family=question.family or benchmark.name,
        group=question.group,
        unit=question.unit,
        question=question.text,
        answers=question.answers,
        prediction=prediction,
        said=None if judgement is None else judgement.said,
        score=None if judgement is None else judgement.score,
        image=str(image) if isinstance(image, Path) else None,
    )
