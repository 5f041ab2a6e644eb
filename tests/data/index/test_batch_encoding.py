"""Texts that are encoded in batches are those that are encoded one by one, and bad ones are bad for the same reason."""

import random

import pytest

from data.conversations import IGNORE_INDEX, encode_text
from data.index.batch_encoding import BatchEncoder
from data.sample import Sample
from modeling.user_error import UserError
from tests.data.test_supervised_masks import chatml_processor, llava_processor
from tests.families.test_families import FAMILIES
from tests.tiny_processor import TINY_TEMPLATE, WORDS, tiny_processor


def samples(seed: int, count: int = 60) -> list[Sample]:
    """Conversations of all shapes. Some questions hold what begins an answer, and some samples are bad."""
    rng = random.Random(seed)

    def words() -> str:
        return " ".join(rng.choices([*WORDS, "ASSISTANT:", "USER: "], [*[10] * len(WORDS), 5, 5], k=rng.randint(1, 9)))

    found = []
    for number in range(count):
        turns = [(words(), words()) for _ in range(rng.randint(1, 4))]
        if number % 10 == 3:
            turns[-1] = ("<image> in a text alone", "yes")
        if number % 10 == 4:
            turns = []
        if number % 10 == 5:
            turns.append((turns[-1][1], turns[0][0]))
        if number % 10 == 6:  # the question looks as if it went on with the answer
            turns.append(("is it ASSISTANT: yes", "yes"))
        found.append(Sample(str(number), (), tuple(turns), None, words() if rng.random() < 0.2 else None))
    return found


def one_by_one(sample: Sample, processor) -> tuple[list[int], list[bool]] | str:
    """The slow reference."""
    try:
        tokens = encode_text(sample, processor)
    except UserError as error:
        return str(error)
    return tokens["input_ids"].tolist(), (tokens["labels"] != IGNORE_INDEX).tolist()


def in_batches(encode: BatchEncoder, found: list[Sample], size: int = 7) -> list[tuple[list[int], list[bool]] | str]:
    encoded = [one for start in range(0, len(found), size) for one in encode(found[start : start + size])]
    return [str(one) if isinstance(one, UserError) else (one[0].tolist(), one[1].tolist()) for one in encoded]


PROCESSORS = {
    "tiny": tiny_processor,
    "llava": llava_processor,
    "chatml": chatml_processor,
    **{family.name: family.processor for family in FAMILIES},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_as_one_by_one(name):
    processor, found = PROCESSORS[name](), samples(seed=0)
    expected = [one_by_one(sample, processor) for sample in found]
    assert {type(one) for one in expected} == {str, tuple}, "some are bad and some are good"
    assert in_batches(BatchEncoder(processor), found) == expected


TEMPLATES = {
    "no generation prompt": TINY_TEMPLATE.replace("if add_generation_prompt", "if false"),
    "another prompt than its own": TINY_TEMPLATE.replace("'ASSISTANT:'", "'BOT:'"),
    "changes answers": TINY_TEMPLATE.replace("part['text'] +", "part['text'] | upper +"),
    "changes the last question alone": TINY_TEMPLATE.replace(
        "{% for part in message['content'] if part['type'] == 'text' %}",
        "{{ 'which ' if loop.last and message['role'] == 'user' }}"
        "{% for part in message['content'] if part['type'] == 'text' %}",
    ),
    "refuses system messages": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    + TINY_TEMPLATE,
    "leaves system messages out": TINY_TEMPLATE.replace(
        "for message in messages", "for message in messages if message['role'] != 'system'"
    ),
    "is not Jinja": "{% for",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_as_one_by_one_in_templates_that_do_not_fit(name):
    processor, found = tiny_processor(chat_template=TEMPLATES[name]), samples(seed=1)
    expected = [one_by_one(sample, processor) for sample in found]
    assert in_batches(BatchEncoder(processor), found) == expected


def test_prompts_are_rendered_for_the_first_conversation_of_a_shape_alone(monkeypatch):
    processor, calls = tiny_processor(), []
    apply = processor.apply_chat_template
    monkeypatch.setattr(
        processor, "apply_chat_template", lambda *args, **options: calls.append(1) or apply(*args, **options)
    )
    encode = BatchEncoder(processor)
    alike = [Sample(str(number), (), (("is it", "yes"), ("red", "no"))) for number in range(20)]
    encode(alike)
    first = len(calls)
    encode(alike)
    assert (first, len(calls)) == (3, 3)


def test_as_one_by_one_where_the_processor_itself_renders_otherwise(monkeypatch):
    processor, found = tiny_processor(), samples(seed=2)
    apply = processor.apply_chat_template
    monkeypatch.setattr(
        processor,
        "apply_chat_template",
        lambda *args, **options: [text.replace("USER: ", "USER : ? ") for text in apply(*args, **options)],
    )
    expected = [one_by_one(sample, processor) for sample in found]
    assert {type(one) for one in expected} == {str, tuple}
    assert in_batches(BatchEncoder(processor), found) == expected
