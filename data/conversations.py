"""Encodes conversations about pictures and videos for training or as a prompt.

Only this file decides which tokens are supervised: exactly the answers, each with its end token.

Shapes: S is the number of tokens of one sample, placeholders expanded.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import ProcessorMixin

from data.images import MAX_PIXELS, tokens_at
from data.placeholders import add_media, check_placeholders, expand_placeholders, refuse_unshowable
from data.sample import MEDIA, Sample, SampleTooLong, mark_of
from data.texts.chat_template import after_space, apply_chat_template, prompt_ends
from modeling.user_error import UserError

IGNORE_INDEX = -100  # what cross entropy leaves out
SYSTEM_LEFT_OUT = "the sample has a system message, which the chat template leaves out"


def encode(
    sample: Sample, processor: ProcessorMixin, max_length: int, max_pixels: int = MAX_PIXELS
) -> dict[str, torch.Tensor]:
    """Encodes a sample for training.

    Returns:
        input_ids: [S] int64.
        labels: [S] int64, not shifted. They are the tokens themselves for answers and their end tokens, -100 elsewhere.
        each key of the image processor: for LLaVA, pixel_values [num_images, 3, H, W] float32. A sample without
            pictures has no such key. One with videos has those of `data.videos.process_videos`.

    Raises:
        SampleTooLong: it has more than `max_length` tokens.
        UserError: a picture or a video is bad, the model takes no videos, there is no answer, a text holds a
            placeholder, or the chat template does not fit.
    """
    with naming_sample(sample):
        encoded = add_media(encode_text(sample, processor), sample, processor, max_pixels)
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
        return add_media({"input_ids": input_ids}, sample, processor, max_pixels)


def encode_text(sample: Sample, processor: ProcessorMixin) -> dict[str, torch.Tensor]:
    """Encodes a sample's text, with one placeholder per picture and video that is not expanded yet.

    Returns:
        input_ids and labels, both int32, of equal length.

    Raises:
        UserError: as `encode`, but for bad pictures and videos.
    """
    refuse_unshowable(sample, processor)
    text, answers = _render(sample, processor)
    input_ids, offsets = _tokenize(text, processor)
    supervised = torch.from_numpy(supervised_tokens(text, answers, offsets))
    check_placeholders(input_ids.numpy(), sample, processor)
    labels = input_ids.masked_fill(~supervised, IGNORE_INDEX)
    return {"input_ids": input_ids, "labels": labels}


def supervised_tokens(text: str, answers: Sequence[tuple[int, int]], offsets: np.ndarray) -> np.ndarray:
    """Returns which tokens are supervised, [S] bool.

    Args:
        text: what was tokenized.
        answers: the characters [start, end) of each answer.
        offsets: the characters [S, 2] that each token covers, as [start, end).

    Raises:
        UserError: a token covers parts of an answer and of what is none.
    """
    in_answer = np.zeros(len(text) + 1, dtype=bool)
    for start, end in answers:
        in_answer[start:end] = True
    first, last = offsets[:, 0], offsets[:, 1] - 1  # characters of each token; it has none where last < first
    has_characters = first <= last
    supervised = in_answer[first] & has_characters
    if (supervised != in_answer[last] & has_characters).any():
        raise UserError("the tokenizer merges the end of a prompt with the beginning of its answer")
    return supervised


def check_length(length: int, max_length: int) -> None:
    """Raises SampleTooLong where a sample of `length` tokens is over the limit."""
    if length > max_length:
        raise SampleTooLong(f"{length} tokens, at most {max_length} are allowed")


def check_expansion(sample: Sample, sizes: Sequence[tuple[int, int]], processor: ProcessorMixin) -> None:
    """Raises UserError where `encode` and the processor's own call make different tokens of this sample.

    Args:
        sample: a sample without videos. Its pictures are not opened: as processors look at nothing but the size, blank
            ones do.
        sizes: (height, width) of each of its pictures, in pixels.
    """
    text, _ = _render(sample, processor)
    images = [Image.new("RGB", (width, height)) for height, width in sizes]
    add_special_tokens = adds_special_tokens(text, processor)
    try:
        expected = processor(
            text=text, images=images or None, add_special_tokens=add_special_tokens, return_tensors="pt"
        )["input_ids"][0]
    except ValueError as error:
        raise UserError(f"{type(processor).__name__} is not supported: it refuses a whole sample ({error})") from error
    tokens_of_images = [tokens_at(size, processor) for size in sizes]
    encoded = expand_placeholders(encode_text(sample, processor), {"image": tokens_of_images}, processor)["input_ids"]
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


def _render(sample: Sample, processor: ProcessorMixin) -> tuple[str, list[tuple[int, int]]]:
    """Returns the conversation in the processor's chat template, and the characters [start, end) of each answer.

    An answer is what a model must generate. It runs from where its generation prompt ends to the end of its end token.
    LLaVA-1.5's template puts a space, and no end token, after answers. Where a template does so, the end token replaces
    the space after *every* answer, because LLaVA-1.5 was trained that way.
    """
    messages = chat_messages(sample, processor)
    (whole,) = apply_chat_template([messages], processor)
    starts = prompt_ends(whole, messages, [answer for _, answer in sample.turns], processor)
    if sample.system is not None and sample.system not in whole[: starts[0]]:
        raise UserError(SYSTEM_LEFT_OUT)
    return with_end_tokens(whole, starts, sample, processor.tokenizer.eos_token)


def chat_messages(sample: Sample, processor: ProcessorMixin) -> list[dict[str, Any]]:
    """Returns a sample as a chat template takes it. Raises UserError where it has no answer that could end."""
    if not sample.turns:
        raise UserError("no supervised token: the sample has no answer")
    if processor.tokenizer.eos_token is None:
        raise UserError("the processor's tokenizer has no eos token to end answers with")
    messages: list[dict[str, Any]] = []
    if sample.system is not None:
        messages.append({"role": "system", "content": [{"type": "text", "text": sample.system}]})
    for question, answer in sample.turns:
        messages.append({"role": "user", "content": _question_parts(question)})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


def with_end_tokens(
    whole: str, starts: Sequence[int], sample: Sample, end_token: str
) -> tuple[str, list[tuple[int, int]]]:
    """Returns a rendered conversation with an end token behind each answer, and the characters [start, end) of each.

    Args:
        whole: the conversation in the chat template.
        starts: where the generation prompt of each answer ends.

    Raises:
        UserError: an answer does not stand where it must.
    """
    text, answers, copied = "", [], 0  # `copied` characters of `whole` stand in `text`
    for start, (_, answer) in zip(starts, sample.turns, strict=True):
        answer_start = after_space(whole, start)
        if not whole.startswith(answer, answer_start):
            raise UserError(f"the chat template does not continue its own prompt with the answer {answer!r}")
        answer_end = answer_start + len(answer)
        end = after_space(whole, answer_end)
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


_MEDIUM_OF: dict[str, str] = {mark_of(medium): medium for medium in MEDIA}
_MARKS = re.compile(f"({'|'.join(_MEDIUM_OF)})")


def _question_parts(question: str) -> list[dict[str, str]]:
    """Returns a question as chat content: its texts, and a picture or a video at each mark."""
    parts = []
    for text in _MARKS.split(question):
        if text in _MEDIUM_OF:
            parts.append({"type": _MEDIUM_OF[text]})
        elif text.strip():
            parts.append({"type": "text", "text": text.strip()})
    return parts


def _tokenize(text: str, processor: ProcessorMixin) -> tuple[torch.Tensor, np.ndarray]:
    """Returns input_ids [S] int32 and the characters [S, 2] int64 that each token covers, as [start, end)."""
    encoding = processor.tokenizer(
        text,
        add_special_tokens=adds_special_tokens(text, processor),
        return_offsets_mapping=True,
        verbose=False,  # no warning about long texts: our own limit is checked once placeholders are expanded
    )
    return (
        torch.tensor(encoding["input_ids"], dtype=torch.int32),
        np.array(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2),
    )


def adds_special_tokens(text: str, processor: ProcessorMixin) -> bool:
    """Returns whether the tokenizer adds the start token. It must not where the template has written one itself."""
    start_token = processor.tokenizer.bos_token
    return start_token is None or not text.startswith(start_token)
