"""Encodes conversations about pictures for training or as a prompt.

Only this file decides which tokens are supervised: exactly the answers, each with its end token.

Shapes: S is the number of tokens of one sample, placeholders expanded.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import ProcessorMixin

from data.images import MAX_PIXELS, open_image, process_images
from data.sample import Sample, SampleTooLong
from data.schemas import IMAGE_MARK
from modeling.user_error import UserError

IGNORE_INDEX = -100  # what cross entropy leaves out


def encode(
    sample: Sample, processor: ProcessorMixin, max_length: int, max_pixels: int = MAX_PIXELS
) -> dict[str, torch.Tensor]:
    """Encodes a sample for training.

    Returns:
        input_ids: [S] int64.
        labels: [S] int64, not shifted. They are the tokens themselves for answers and their end tokens, -100 elsewhere.
        each key of the image processor: for LLaVA, pixel_values [num_images, 3, H, W] float32. A sample without
            pictures has no such key.

    Raises:
        SampleTooLong: it has more than `max_length` tokens.
        UserError: a picture is bad, there is no answer, a text holds the image token, or the chat template does not
            fit.
    """
    with naming_sample(sample):
        encoded = _encode_whole(sample, processor, max_pixels)
        check_length(len(encoded["input_ids"]), max_length)
    return encoded


def encode_prompt(sample: Sample, processor: ProcessorMixin, max_pixels: int = MAX_PIXELS) -> dict[str, torch.Tensor]:
    """Encodes a sample up to its last answer, which a model is asked for.

    Returns:
        What `encode` gives up to there, without labels.

    Raises:
        UserError: as `encode`.
    """
    with naming_sample(sample):
        text, answers = _render(sample, processor)
        last_answer, _ = answers[-1]
        input_ids, _ = _tokenize(text[:last_answer], processor)
        return add_images({"input_ids": input_ids}, sample, processor, max_pixels)


def encode_text(sample: Sample, processor: ProcessorMixin) -> dict[str, torch.Tensor]:
    """Encodes a sample's text, with one placeholder per picture that is not expanded yet.

    Returns:
        input_ids and labels, both int32, of equal length.

    Raises:
        UserError: as `encode`, but for bad pictures.
    """
    _refuse_placeholders(sample, processor)
    text, answers = _render(sample, processor)
    input_ids, offsets = _tokenize(text, processor)
    num_image_tokens = int((input_ids == processor.image_token_id).sum())
    if num_image_tokens != len(sample.images):
        raise UserError(
            f"{num_image_tokens} image tokens for {len(sample.images)} images; no text may hold the image token "
            f"{processor.image_token!r}, and the chat template must show every image"
        )
    in_answer = torch.zeros(len(text) + 1, dtype=torch.bool)
    for start, end in answers:
        in_answer[start:end] = True
    first, last = offsets[:, 0], offsets[:, 1] - 1  # characters of each token; it has none where last < first
    supervised = in_answer[first] & (first <= last)
    if (supervised != in_answer[last] & (first <= last)).any():
        raise UserError("the tokenizer merges the end of a prompt with the beginning of its answer")
    labels = input_ids.masked_fill(~supervised, IGNORE_INDEX)
    return {"input_ids": input_ids, "labels": labels}


def _refuse_placeholders(sample: Sample, processor: ProcessorMixin) -> None:
    """Raises UserError where a text holds what stands for a picture, a video or a sound in this model."""
    tokens = (getattr(processor, f"{kind}_token", None) for kind in ("image", "video", "audio"))
    for token in tokens:
        if token not in (None, IMAGE_MARK) and any(
            token in text for text in (sample.system or "", *sum(sample.turns, ()))
        ):
            raise UserError(f"a text holds {token!r}, which stands for what the model is shown; no text may hold it")


def add_images(
    tokens: dict[str, torch.Tensor], sample: Sample, processor: ProcessorMixin, max_pixels: int
) -> dict[str, torch.Tensor]:
    """Returns `tokens` of `encode_text` with each placeholder expanded, and the processed pictures beside them."""
    pictures, tokens_of_images = process_images(sample.images, processor, max_pixels)
    return expand_placeholders(tokens, tokens_of_images, processor) | pictures


def expand_placeholders(
    tokens: dict[str, torch.Tensor], tokens_of_images: Sequence[torch.Tensor], processor: ProcessorMixin
) -> dict[str, torch.Tensor]:
    """Returns `tokens` of `encode_text`, as int64, with each placeholder replaced by the tokens of its picture."""
    repeats = torch.ones_like(tokens["input_ids"])
    is_image = tokens["input_ids"] == processor.image_token_id
    repeats[is_image] = torch.tensor(list(map(len, tokens_of_images)), dtype=repeats.dtype)
    expanded = {key: value.long().repeat_interleave(repeats) for key, value in tokens.items()}
    if tokens_of_images:
        expanded["input_ids"][is_image.repeat_interleave(repeats)] = torch.cat(list(tokens_of_images))
    return expanded


def check_length(length: int, max_length: int) -> None:
    """Raises SampleTooLong where a sample of `length` tokens is over the limit."""
    if length > max_length:
        raise SampleTooLong(f"{length} tokens, at most {max_length} are allowed")


def check_expansion(sample: Sample, processor: ProcessorMixin, max_pixels: int = MAX_PIXELS) -> None:
    """Raises UserError where `encode` and the processor's own call make different tokens of this sample."""
    text, _ = _render(sample, processor)
    images = [open_image(path, max_pixels) for path in sample.images]
    add_special_tokens = _adds_special_tokens(text, processor)
    try:
        expected = processor(
            text=text, images=images or None, add_special_tokens=add_special_tokens, return_tensors="pt"
        )["input_ids"][0]
    except ValueError as error:
        raise UserError(f"{type(processor).__name__} is not supported: it refuses a whole sample ({error})") from error
    encoded = _encode_whole(sample, processor, max_pixels)["input_ids"]
    if not torch.equal(encoded, expected):
        raise UserError(
            f"{type(processor).__name__} is not supported: it makes {len(expected)} tokens where one placeholder per "
            f"image, expanded, makes {len(encoded)}"
        )


@contextmanager
def naming_sample(sample: Sample) -> Iterator[None]:
    """Adds the sample's id to every UserError that is raised inside."""
    try:
        yield
    except UserError as error:
        error_type = SampleTooLong if isinstance(error, SampleTooLong) else UserError
        raise error_type(f"sample {sample.id!r}: {error}") from error


def _encode_whole(sample: Sample, processor: ProcessorMixin, max_pixels: int) -> dict[str, torch.Tensor]:
    """Returns what `encode` gives, whatever its length."""
    return add_images(encode_text(sample, processor), sample, processor, max_pixels)


def _render(sample: Sample, processor: ProcessorMixin) -> tuple[str, list[tuple[int, int]]]:
    """Returns the conversation in the processor's chat template, and the characters [start, end) of each answer.

    An answer is what a model must generate. It runs from where its generation prompt ends to the end of its end token.
    LLaVA-1.5's template puts a space, and no end token, after answers. Where a template does so, the end token replaces
    the space after *every* answer, because LLaVA-1.5 was trained that way.
    """
    if not sample.turns:
        raise UserError("no supervised token: the sample has no answer")
    end_token = processor.tokenizer.eos_token
    if end_token is None:
        raise UserError("the processor's tokenizer has no eos token to end answers with")
    messages: list[dict[str, Any]] = []
    if sample.system is not None:
        messages.append({"role": "system", "content": [{"type": "text", "text": sample.system}]})
    num_before = len(messages)
    for question, answer in sample.turns:
        messages.append({"role": "user", "content": _question_parts(question)})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    questions = [messages[: num_before + 2 * turn + 1] for turn in range(len(sample.turns))]
    try:
        whole = processor.apply_chat_template(messages, tokenize=False)
        prompts = processor.apply_chat_template(questions, add_generation_prompt=True, tokenize=False)
    except (ValueError, TemplateError) as error:  # there is no template, or it is not Jinja, or it raises by itself
        raise UserError(f"the chat template of {type(processor).__name__} cannot be applied ({error})") from error
    if sample.system is not None and sample.system not in prompts[0]:
        raise UserError("the sample has a system message, which the chat template leaves out")

    text, answers, copied = "", [], 0  # `copied` characters of `whole` stand in `text`
    for prompt, (_, answer) in zip(prompts, sample.turns, strict=True):
        start = len(prompt)
        answer_start = _after_space(whole, start)
        if not whole.startswith(prompt) or not whole.startswith(answer, answer_start):
            raise UserError(f"the chat template does not continue its own prompt with the answer {answer!r}")
        answer_end = answer_start + len(answer)
        end = _after_space(whole, answer_end)
        if whole.startswith(end_token, end):
            end += len(end_token)
            reply = whole[start:end]
        else:
            reply = whole[start:answer_end] + end_token
        text += whole[copied:start]
        answers.append((len(text), len(text) + len(reply)))
        text += reply
        copied = end
    return text + whole[copied:], answers


def _after_space(text: str, start: int) -> int:
    """Returns the index of the first character at or after `start` that is not white space."""
    return len(text) - len(text[start:].lstrip())


def _question_parts(question: str) -> list[dict[str, str]]:
    """Returns a question as chat content: its texts, and a picture at each mark."""
    parts = []
    for index, text in enumerate(question.split(IMAGE_MARK)):
        if index > 0:
            parts.append({"type": "image"})
        if text.strip():
            parts.append({"type": "text", "text": text.strip()})
    return parts


def _tokenize(text: str, processor: ProcessorMixin) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns input_ids [S] int32 and the characters [S, 2] int64 that each token covers, as [start, end)."""
    encoding = processor.tokenizer(
        text,
        add_special_tokens=_adds_special_tokens(text, processor),
        return_offsets_mapping=True,
        verbose=False,  # no warning about long texts: our own limit is checked once placeholders are expanded
    )
    return (
        torch.tensor(encoding["input_ids"], dtype=torch.int32),
        torch.tensor(encoding["offset_mapping"], dtype=torch.int64),
    )


def _adds_special_tokens(text: str, processor: ProcessorMixin) -> bool:
    """Returns whether the tokenizer adds the start token. It must not where the template has written one itself."""
    start_token = processor.tokenizer.bos_token
    return start_token is None or not text.startswith(start_token)
