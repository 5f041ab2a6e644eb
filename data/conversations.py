"""Reads conversations about pictures from LLaVA's JSON, and encodes them for training or as a prompt.

Only this file decides which tokens are supervised: exactly the answers, each with its end token.

The format is LLaVA's (arXiv 2304.08485). A file is a list of rows:

    {"id": …, "image": path or list of paths, "family": …, "conversations": [{"from": "human" | "gpt", "value": …}]}

Each `<image>` mark in a human turn stands for the next picture. `image` and `family` are optional. A row that was read
and checked is a `Sample`.

Shapes: S is the number of tokens of one sample, placeholders expanded.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from transformers import ProcessorMixin

from data.images import MAX_PIXELS, find_image, open_image, process_images
from modeling.user_error import UserError

IMAGE_MARK = "<image>"
IGNORE_INDEX = -100  # what cross entropy leaves out

OnBadSample = Literal["error", "skip"]


@dataclass(frozen=True)
class Sample:
    """A conversation about pictures.

    Attributes:
        id: the id of its row.
        images: paths of its pictures. Each `<image>` mark in a question stands for the next one.
        turns: (question, answer) pairs, in order.
        family: the family of questions that says how its answers are scored.
    """

    id: str
    images: tuple[Path, ...]
    turns: tuple[tuple[str, str], ...]
    family: str | None = None


@dataclass(frozen=True)
class BadSample:
    """A sample that was left out.

    Attributes:
        id: its id, if it had one.
        index: its index in the list that it came from.
        reason: why it was left out.
    """

    id: str | None
    index: int
    reason: str


class SampleTooLong(UserError):
    """A sample has more tokens than the limit. It is left out whole, never cut."""


def load_llava_json(
    json_path: Path, image_root: Path, *, on_bad_sample: OnBadSample = "error", max_bad_share: float = 0.0
) -> tuple[list[Sample], list[BadSample]]:
    """Reads and checks a LLaVA JSON file. The picture files must be there, but are not opened.

    Args:
        json_path: the JSON file.
        image_root: the folder that the rows' image paths are relative to and may not leave.
        on_bad_sample: "error" stops at the first bad row. "skip" leaves bad rows out and returns them.
        max_bad_share: with "skip", the largest share of bad rows, in [0, 1], that is not an error.

    Returns:
        The good rows as samples, and the bad ones.

    Raises:
        UserError: the file is not a JSON list of rows, a row is bad, or too many are.
    """
    samples, bad = [], []
    rows = _read_rows(json_path)
    for index, row in enumerate(rows):
        try:
            samples.append(_read_row(row, image_root))
        except UserError as error:
            row_id = str(row["id"]) if isinstance(row, dict) and "id" in row else None
            reason = f"{json_path}: row {index} (id {row_id!r}): {error}"
            if on_bad_sample == "error":
                raise UserError(reason) from error
            bad.append(BadSample(row_id, index, reason))
    check_bad_share(bad, len(rows), max_bad_share)
    return samples, bad


def check_bad_share(bad: list[BadSample], num_samples: int, max_bad_share: float) -> None:
    """Raises UserError where more than `max_bad_share` of `num_samples` are bad."""
    if len(bad) > max_bad_share * num_samples:
        raise UserError(
            f"{len(bad)} of {num_samples} samples are bad, at most a share of {max_bad_share} is allowed; "
            f"the first: {bad[0].reason}"
        )


def _read_rows(json_path: Path) -> list[Any]:
    try:
        rows = json.loads(Path(json_path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{json_path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{json_path}: not JSON ({error})") from error
    if not isinstance(rows, list) or not rows:
        raise UserError(
            f"{json_path}: got {'no rows' if rows == [] else type(rows).__name__}, a list of rows is expected"
        )
    return rows


def _read_row(row: Any, image_root: Path) -> Sample:
    """Returns a row as a Sample. Raises UserError, which says what is wrong with it."""
    if not isinstance(row, dict):
        raise UserError(f"got {type(row).__name__}, a row is an object")
    for key, types in (("id", (str, int)), ("conversations", list)):
        if key not in row:
            raise UserError(f"no key {key!r}; got {sorted(row)}")
        if not isinstance(row[key], types):
            raise UserError(f"{key!r} is {type(row[key]).__name__}, a {'text' if key == 'id' else 'list'} is expected")
    family = row.get("family")
    if family is not None and not isinstance(family, str):
        raise UserError(f"'family' is {type(family).__name__}, a text is expected")

    turns = _read_turns(row["conversations"])
    images = row.get("image", [])
    names = [images] if isinstance(images, str) else images
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"'image' is {images!r}, a path or a list of paths is expected (no key where there is no image)"
        )
    num_marks = sum(question.count(IMAGE_MARK) for question, _ in turns)
    if num_marks != len(names):
        raise UserError(f"{num_marks} {IMAGE_MARK} marks for {len(names)} images, as many marks as images are expected")
    return Sample(str(row["id"]), tuple(find_image(image_root, name) for name in names), turns, family)


def _read_turns(conversation: list[Any]) -> tuple[tuple[str, str], ...]:
    """Returns the (question, answer) pairs of a conversation in which human and gpt take turns."""
    texts = []
    for index, turn in enumerate(conversation):
        if (
            not isinstance(turn, dict)
            or not isinstance(turn.get("from"), str)
            or not isinstance(turn.get("value"), str)
        ):
            raise UserError(f"turn {index} is {turn!r}, an object with texts 'from' and 'value' is expected")
        speaker, expected = turn["from"], ("human", "gpt")[index % 2]
        if speaker not in ("human", "gpt"):
            raise UserError(f"turn {index} is from {speaker!r}, allowed are 'human' and 'gpt'")
        if speaker != expected and index == 0:
            raise UserError("the conversation starts with 'gpt', it must start with 'human'")
        if speaker != expected:
            raise UserError(f"two {speaker!r} turns in a row (turns {index - 1} and {index})")
        try:
            turn["value"].encode()
        except UnicodeEncodeError as error:  # half a surrogate pair: JSON can hold it, but no tokenizer takes it
            raise UserError(f"turn {index} is not text ({error})") from error
        texts.append(turn["value"].strip())
    if len(texts) == 0 or len(texts) % 2:
        raise UserError(f"the conversation {'ends with human' if texts else 'is empty'}, it must end with 'gpt'")
    for pair, answer in enumerate(texts[1::2]):
        if not answer:
            raise UserError(f"turn {2 * pair + 1} is an empty answer")
        if IMAGE_MARK in answer:
            raise UserError(f"turn {2 * pair + 1} is an answer with an {IMAGE_MARK} mark, only questions show images")
    return tuple(zip(texts[::2], texts[1::2], strict=True))


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
    for question, answer in sample.turns:
        messages.append({"role": "user", "content": _question_parts(question)})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    questions = [messages[: 2 * turn + 1] for turn in range(len(sample.turns))]
    try:
        whole = processor.apply_chat_template(messages, tokenize=False)
        prompts = processor.apply_chat_template(questions, add_generation_prompt=True, tokenize=False)
    except (ValueError, TemplateError) as error:  # there is no template, or it is not Jinja, or it raises by itself
        raise UserError(f"the chat template of {type(processor).__name__} cannot be applied ({error})") from error

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
