"""Applies chat templates, and finds in a conversation where each of its prompts ends.

The prompt of an answer is the conversation up to its question, with the generation prompt, such as `ASSISTANT:`. If
the template were applied to each prompt, the time would grow with the square of the turns. So it is applied to the
prompts of the 1st, 2nd, 4th, 8th, ... and last answer, which takes as long as a few whole conversations. Between them,
every question is put into the template by itself, and must be found behind the answer before it.
"""

import re
from itertools import takewhile
from typing import Any

from jinja2 import TemplateError
from transformers import ProcessorMixin

from modeling.user_error import UserError

MOST_TURNS = 100
"""Turns of a conversation whose prompts must all be rendered, as the template treats its questions unlike."""
_SPACE = re.compile(r"\s*")


def apply_chat_template(conversations: list[list[dict]], processor: ProcessorMixin, **options: bool) -> list[str]:
    """Returns each conversation in the processor's chat template. Raises UserError where it cannot be applied."""
    try:
        return processor.apply_chat_template(conversations, tokenize=False, **options)
    except (ValueError, TemplateError) as error:  # there is no template, or it is not Jinja, or it raises by itself
        raise UserError(f"the chat template of {type(processor).__name__} cannot be applied ({error})") from error


def prompt_ends(whole: str, messages: list[dict[str, Any]], answers: list[str], processor: ProcessorMixin) -> list[int]:
    """Returns the length of each prompt of a conversation.

    Args:
        whole: the conversation in the chat template.
        messages: the conversation. Question and answer take turns in it, perhaps behind a system message.
        answers: the texts of its answers.

    Raises:
        UserError: the template cannot be applied, or `whole` does not begin with a prompt, or does not go on with the
            answer.
    """
    turns = _Turns(whole, messages, answers, processor)
    count = len(answers)
    rendered = sorted({2**power - 1 for power in range(count.bit_length())} | {count - 1})
    ends = dict(zip(rendered, turns.rendered(rendered), strict=True))
    if len(ends) < count:
        others = [turn for turn in range(count) if turn not in ends]
        try:
            ends |= turns.found(others, ends)
        except _UnlikeQuestions:
            if count > MOST_TURNS:
                raise UserError(
                    f"{count} turns, at most {MOST_TURNS} are allowed where the chat template treats questions unlike"
                ) from None
            ends |= zip(others, turns.rendered(others), strict=True)
    return [ends[turn] for turn in range(count)]


def after_space(text: str, start: int) -> int:
    """Returns the index of the first character at or after `start` that is not white space."""
    space = _SPACE.match(text, start)
    assert space is not None, "it matches everywhere"
    return space.end()


class _UnlikeQuestions(Exception):
    """A question does not stand in the conversation as it does by itself."""


class _Turns:
    """The turns of one conversation, counted from 0."""

    def __init__(self, whole: str, messages: list[dict[str, Any]], answers: list[str], processor: ProcessorMixin):
        self._whole, self._messages, self._answers, self._processor = whole, messages, answers, processor
        self._questions = [place for place, message in enumerate(messages) if message["role"] == "user"]

    def rendered(self, turns: list[int]) -> list[int]:
        """Returns the lengths of prompts, by applying the template to each."""
        parts = [self._messages[: self._questions[turn] + 1] for turn in turns]
        prompts = apply_chat_template(parts, self._processor, add_generation_prompt=True)
        for turn, prompt in zip(turns, prompts, strict=True):
            if not self._whole.startswith(prompt):
                raise self._unfit(turn)
        return list(map(len, prompts))

    def found(self, turns: list[int], known: dict[int, int]) -> dict[int, int]:
        """Returns the lengths of prompts, by finding each question behind the answer before it.

        Args:
            turns: their turns, ascending, none of them the first two.
            known: the lengths of the prompts of all other turns.

        Raises:
            _UnlikeQuestions: a question does not stand there as it does by itself, or cannot stand by itself.
        """
        alone = [[self._messages[self._questions[turn]]] for turn in (1, *turns)]
        try:
            second, *texts = apply_chat_template(alone, self._processor, add_generation_prompt=True)
        except UserError:
            raise _UnlikeQuestions from None
        # What the second question by itself and in the conversation have in common, and what comes before that.
        behind = self._answer_end(0, known)
        pairs = zip(reversed(second), reversed(self._whole[behind : known[1]]), strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        before, left_out = self._whole[behind : known[1] - common], len(second) - common
        ends = dict(known)
        for turn, text in zip(turns, texts, strict=True):
            part = before + text[left_out:]
            behind = self._answer_end(turn - 1, ends)
            if not self._whole.startswith(part, behind):
                raise _UnlikeQuestions
            ends[turn] = behind + len(part)
        return ends

    def _answer_end(self, turn: int, ends: dict[int, int]) -> int:
        """Returns where an answer ends."""
        start = after_space(self._whole, ends[turn])
        if not self._whole.startswith(self._answers[turn], start):
            raise self._unfit(turn)
        return start + len(self._answers[turn])

    def _unfit(self, turn: int) -> UserError:
        return UserError(f"the chat template does not continue its own prompt with the answer {self._answers[turn]!r}")
