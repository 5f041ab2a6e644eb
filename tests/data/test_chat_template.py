"""Long conversations: every prompt ends where it does if the template is applied to it, in a time that grows with the
turns."""

import random
from functools import partial

import pytest

from data import conversations
from data.conversations import encode
from data.sample import Sample
from data.texts.chat_template import apply_chat_template, prompt_ends
from modeling.user_error import UserError
from tests.data.test_supervised_masks import chatml_processor, llava_processor, show
from tests.families.test_families import FAMILIES
from tests.tiny_processor import TINY_TEMPLATE, tiny_processor


def one_prompt_at_a_time(whole, messages, answers, processor):
    """The slow reference of `prompt_ends`: the template is applied to every prompt."""
    questions = [messages[:number] for number, message in enumerate(messages, start=1) if message["role"] == "user"]
    prompts = apply_chat_template(questions, processor, add_generation_prompt=True)
    for prompt, answer in zip(prompts, answers, strict=True):
        if not whole.startswith(prompt):
            raise UserError(f"the chat template does not continue its own prompt with the answer {answer!r}")
    return list(map(len, prompts))


UNLIKE = {
    "counts its turns": TINY_TEMPLATE.replace(
        "{% for part", "{{ loop.index if message['role'] == 'user' }}{% for part", 1
    ),
    "says at first what to do": "{{ 'picture says . ' }}" + TINY_TEMPLATE,
    "changes an answer": TINY_TEMPLATE.replace("part['text'] +", "part['text'] | replace('no', 'yes') +"),
    "has an own first question": TINY_TEMPLATE.replace(
        "{{ part['text']", "{{ 'which ' if loop.first }}{{ part['text']"
    ),
    "needs a system message": "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no') }}{% endif %}"
    + TINY_TEMPLATE,
}
LONG_CHATS = {
    "tiny": tiny_processor,
    "llava": llava_processor,
    "chatml": chatml_processor,
    **{name: partial(tiny_processor, chat_template=template) for name, template in UNLIKE.items()},
}
LONG_CHATS_OF_FAMILIES = {family.name: family.processor for family in FAMILIES}


@pytest.mark.parametrize(
    "make_processor",
    [
        *(pytest.param(make, id=name) for name, make in LONG_CHATS.items()),
        *(pytest.param(make, id=name, marks=pytest.mark.slow) for name, make in LONG_CHATS_OF_FAMILIES.items()),
    ],
)
def test_long_conversations_are_encoded_as_prompt_by_prompt(make_processor, monkeypatch):
    """Also where a question looks like an answer, an answer like a question, and both like what begins them."""
    processor, rng = make_processor(), random.Random(0)
    texts = [
        "is it",
        "yes",
        "ASSISTANT: yes",
        "USER: is it",
        "is it ASSISTANT: yes USER:",
        "no",
        "is it\n\nred",
        "[INST]",
    ]
    for count in (*range(1, 7), 9, 17):
        for system in (None, "describe the picture"):
            turns = tuple((rng.choice(texts), rng.choice(texts)) for _ in range(count))
            sample, found = Sample("s", (), turns, system=system), []
            for ends in (prompt_ends, one_prompt_at_a_time):
                monkeypatch.setattr(conversations, "prompt_ends", ends)
                try:
                    found.append(show(processor, encode(sample, processor, 10_000)))
                except UserError as error:
                    found.append(str(error).partition(" with the answer")[0])
            assert found[0] == found[1], (count, system)


def test_the_time_of_a_conversation_grows_with_its_turns(monkeypatch):
    """Counted in messages that the template is applied to: prompt by prompt there would be a million."""
    processor, messages = tiny_processor(), []
    apply = processor.apply_chat_template
    monkeypatch.setattr(
        processor,
        "apply_chat_template",
        lambda conversations, **options: messages.extend(map(len, conversations)) or apply(conversations, **options),
    )
    for count in (10, 100, 1_000):
        messages.clear()
        encode(Sample("s", (), (("is it", "yes"),) * count), processor, 100_000)
        assert sum(messages) <= 10 * count
    monkeypatch.setattr(conversations, "prompt_ends", one_prompt_at_a_time)
    messages.clear()
    encode(Sample("s", (), (("is it", "yes"),) * 100), processor, 100_000)
    assert sum(messages) > 10_000, "a negative control"


def test_many_questions_that_are_unlike_are_refused():
    processor = tiny_processor(chat_template=UNLIKE["counts its turns"])
    assert encode(Sample("s", (), (("is it", "yes"),) * 100), processor, 10_000)
    with pytest.raises(UserError, match="101 turns, at most 100 are allowed where the chat template treats questions"):
        encode(Sample("s", (), (("is it", "yes"),) * 101), processor, 10_000)
