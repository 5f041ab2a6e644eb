"""Encodes the texts of many samples at once. It gives what `data.conversations.encode_text` gives, and takes a third
of the time.

The chat template is applied once to a conversation, and not also to each of its prompts. It is applied to the messages
themselves, of which the processor would make a copy first. Answers are found by the
generation prompt, such as `ASSISTANT:`. That is done only where the generation prompt stands in a conversation as often
as there are answers, and only for conversations of a shape that `encode_text` itself has encoded like that. All others,
and all that are bad, are left to `encode_text`.
"""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from jinja2 import TemplateError
from transformers import ProcessorMixin
from transformers.utils.chat_template_utils import _compile_jinja_template

from data.conversations import (
    IGNORE_INDEX,
    adds_special_tokens,
    chat_messages,
    encode_text,
    supervised_tokens,
    with_end_tokens,
)
from data.placeholders import check_placeholders, refuse_unshowable
from data.sample import Sample
from data.texts.chat_template import apply_chat_template
from modeling.user_error import UserError

_TURNS_LOOKED_AT = 8
"""A longer conversation goes on like its first turns, or it is left to `encode_text`."""


class EncodedText(NamedTuple):
    """A sample's text, with one placeholder per picture and video that is not expanded yet."""

    input_ids: np.ndarray
    """[S] int32."""
    supervised: np.ndarray
    """[S] bool: whether a token belongs to an answer or ends one."""


class _Rendered(NamedTuple):
    """A sample in the chat template."""

    number: int
    """Its number in the batch."""
    text: str
    answers: list[tuple[int, int]]
    """The characters [start, end) of each answer."""


class BatchEncoder:
    """Encodes batches of samples. It learns how the processor's chat template begins an answer, and is kept."""

    def __init__(self, processor: ProcessorMixin):
        self._processor = processor
        self._generation_prompts: dict[tuple[bool, int], str | None] = {}
        """The generation prompt in conversations of each shape: whether they have a system message, and the number of
        turns, up to `_TURNS_LOOKED_AT`. None: the answers are not found by it."""

    def __call__(self, samples: Sequence[Sample]) -> list[EncodedText | UserError]:
        """Returns each sample's text, or what is wrong with it."""
        encoded: dict[int, EncodedText] = {}
        rendered = self._rendered(samples)
        parts: dict[bool, list[_Rendered]] = {True: [], False: []}
        for one in rendered:
            parts[adds_special_tokens(one.text, self._processor)].append(one)
        for add_special_tokens, part in parts.items():
            encoded |= self._tokenized(part, samples, add_special_tokens)
        return [encoded[number] if number in encoded else self._one(sample) for number, sample in enumerate(samples)]

    def _one(self, sample: Sample) -> EncodedText | UserError:
        """Returns what `encode_text` makes of a sample, or what it raises."""
        try:
            tokens = encode_text(sample, self._processor)
        except UserError as error:
            return error
        return EncodedText(tokens["input_ids"].numpy(), (tokens["labels"] != IGNORE_INDEX).numpy())

    def _rendered(self, samples: Sequence[Sample]) -> list[_Rendered]:
        """Returns the samples that can be rendered without their prompts."""
        conversations = {}
        for number, sample in enumerate(samples):
            try:
                refuse_unshowable(sample, self._processor)
                conversations[number] = chat_messages(sample, self._processor)
            except UserError:
                continue
        found = (self._with_answers(number, samples[number], messages) for number, messages in conversations.items())
        return [rendered for rendered in found if rendered is not None]

    def _with_answers(self, number: int, sample: Sample, messages: list[dict]) -> _Rendered | None:
        """Returns a rendered conversation with its answers; None if they are not found without its prompts."""
        shape = sample.system is not None, min(len(sample.turns), _TURNS_LOOKED_AT)
        if shape not in self._generation_prompts:
            first = messages[: shape[0] + 2 * shape[1]]
            self._generation_prompts[shape] = self._generation_prompt(first)
        generation_prompt = self._generation_prompts[shape]
        if generation_prompt is None:
            return None
        try:
            whole = self._render(messages)
        except (TemplateError, UserError):
            return None
        if whole.count(generation_prompt) != len(sample.turns):
            return None
        starts, start = [], 0
        for _ in sample.turns:
            start = whole.index(generation_prompt, start) + len(generation_prompt)
            starts.append(start)
        if sample.system is not None and sample.system not in whole[: starts[0]]:
            return None
        try:
            text, answers = with_end_tokens(whole, starts, sample, self._processor.tokenizer.eos_token)
        except UserError:
            return None
        return _Rendered(number, text, answers)

    def _render(self, messages: list[dict]) -> str:
        """Returns a conversation in the chat template. Unlike `apply_chat_template` it does not copy it first."""
        template = self._processor.chat_template
        if not isinstance(template, str):  # there are several, or the tokenizer has it
            (whole,) = apply_chat_template([messages], self._processor)
            return whole
        special_tokens = self._processor.tokenizer.special_tokens_map
        return _compile_jinja_template(template).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=False, **special_tokens
        )

    def _generation_prompt(self, messages: list[dict]) -> str | None:
        """Returns what the template puts behind every question of these messages for a model to go on from.

        None if it puts nothing there, or not the same each time, or if the conversation does not go on like that, or is
        rendered otherwise by the processor itself.
        """
        questions = [messages[:number] for number, message in enumerate(messages, 1) if message["role"] == "user"]
        try:
            prompts = apply_chat_template(questions, self._processor, add_generation_prompt=True)
            bare = apply_chat_template(questions, self._processor)
            (whole,) = apply_chat_template([messages], self._processor)
        except UserError:
            return None
        if self._render(messages) != whole:
            return None
        generation_prompt = prompts[0].removeprefix(bare[0])
        fits = all(
            prompt == without + generation_prompt and whole.startswith(prompt)
            for prompt, without in zip(prompts, bare, strict=True)
        )
        return generation_prompt if generation_prompt and fits else None

    def _tokenized(
        self, rendered: Sequence[_Rendered], samples: Sequence[Sample], add_special_tokens: bool
    ) -> dict[int, EncodedText]:
        """Returns what the tokenizer makes of texts, by their numbers. Those that are bad are left out."""
        if not rendered:
            return {}
        encoding = self._processor.tokenizer(
            [one.text for one in rendered],
            add_special_tokens=add_special_tokens,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # as in `encode_text`
        )
        encoded = {}
        for one, ids, pairs in zip(rendered, encoding["input_ids"], encoding["offset_mapping"], strict=True):
            input_ids = np.array(ids, dtype=np.int32)
            offsets = np.fromiter(chain.from_iterable(pairs), dtype=np.int64, count=2 * len(ids)).reshape(-1, 2)
            try:
                supervised = supervised_tokens(one.text, one.answers, offsets)
                check_placeholders(input_ids, samples[one.number], self._processor)
            except UserError:
                continue
            encoded[one.number] = EncodedText(input_ids, supervised)
        return encoded
