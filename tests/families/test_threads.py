"""Threads that ask one model at once get the answers that they would get one after another, under any kind of plan."""

import random
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from transformers import PreTrainedModel

from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from tests.families.family import PAD, TinyFamily, as_batch, batch_of, sample_of, with_telling_class_token
from tests.families.internvl import INTERNVL
from tests.families.llava import LLAVA
from tests.families.llava_next import LLAVA_NEXT
from tests.families.qwen2_vl import QWEN2_VL
from tests.families.test_families import LAYERS, RANKED

THREADS = 4
DENSE = VisualPlan.dense(LAYERS)
RANKS = {
    "last": {"by": "text_attention"},
    "instruction": {"by": "text_attention", "rows": "instruction"},
    "image": {"by": "image_attention"},
    "uniform": {"by": "uniform"},
    "random": {"by": "random", "seed": 3},
    "class token": {"by": "cls_attention"},
    "class token, two blocks": {"by": "cls_attention", "tower_layers": 2},
}
PLANS = {
    "dense": DENSE,
    "heads": DENSE.replace(0, heads=(1,)).replace(1, heads=1),
    "neurons": DENSE.replace(0, ffn=(3, 20, 7)).replace(1, ffn=5),
    "neighbours": DENSE.replace(0, radius=1).replace(1, radius=1, bidirectional=True),
    "skipped": DENSE.replace(0, attend=False, ffn=0).replace(1, attend=False),
    "unread": DENSE.replace(1, read=False),
    "withdrawn": DENSE.replace(2, tokens=0.0),
} | {
    f"rank by {name}": VisualPlan.from_dict({"layers": [{}, {"tokens": 0.6, "rank": rank}, {"tokens": 0.3}]})
    for name, rank in RANKS.items()
}
AT_ONCE = VisualPlan.from_dict({"layers": [{"tokens": 0.6, "rank": RANKS["class token, two blocks"]}, {}, {}]})
families = pytest.mark.parametrize(
    "family", [LLAVA[0], LLAVA_NEXT[0], QWEN2_VL, *INTERNVL[:2]], ids=lambda family: family.name
)
Question = Callable[[PreTrainedModel], list[torch.Tensor] | str]


def answers_to(inputs: dict, more: dict | None = None) -> Question:
    """A question whose answer is the tokens and logits of one turn, or of a second one with the first one's cache."""

    def ask(model: PreTrainedModel) -> list[torch.Tensor] | str:
        settings = {
            "max_new_tokens": 2,
            "do_sample": False,
            "pad_token_id": PAD,
            "eos_token_id": None,
            "suppress_tokens": [PAD, *model.visual_tokens(model.config).values()],
            "return_dict_in_generate": True,
            "output_logits": True,
        }
        said = model.generate(**inputs, **settings)
        if more is not None:
            ids = torch.cat([said.sequences, more["input_ids"]], dim=1)
            turn = {**more, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            try:
                said = model.generate(**turn, past_key_values=said.past_key_values, **settings)
            except UserError as error:
                return str(error)
        return [said.sequences, *said.logits]

    return ask


def questions(family: TinyFamily) -> list[Question]:
    """Text, more text than the first rotary frequencies are for, pictures, a batch, and two conversations."""
    text, one, two = family.samples(3)
    long = sample_of([1, *(20 + number % 30 for number in range(140))])
    text_turn = as_batch(sample_of([40, 41, 42, 43]))
    return [
        answers_to(as_batch(text)),
        answers_to(as_batch(long)),
        answers_to(as_batch(two)),
        answers_to(batch_of([text, one, two], "left")),
        answers_to(as_batch(one), text_turn),
        answers_to(as_batch(one), as_batch(family.samples(4)[1])),
    ]


def same(found: list[torch.Tensor] | str, expected: list[torch.Tensor] | str) -> bool:
    if isinstance(found, str) or isinstance(expected, str):
        return found == expected
    return all(
        one.shape == other.shape and torch.allclose(one, other, 1e-4, 1e-4)
        for one, other in zip(found, expected, strict=True)
    )


def wrong_answers(model: PreTrainedModel, jobs: Sequence[tuple[VisualPlan | None, Question]]) -> list[str]:
    """Asks all jobs one after another, then in every thread at once, each in its own order.

    Args:
        jobs: plans and questions. None is the model's own plan.

    Returns:
        What the threads got otherwise.
    """

    def ask(job: tuple[VisualPlan | None, Question]) -> list[torch.Tensor] | str:
        plan, question = job
        if plan is None:
            return question(model)
        with model.use_plan(plan):
            return question(model)

    expected = [ask(job) for job in jobs]
    together = Barrier(THREADS)

    def asked(thread: int) -> list[str]:
        order = random.Random(thread).sample(range(len(jobs)), len(jobs))
        together.wait()
        wrong = []
        for number in order:
            try:
                if not same(ask(jobs[number]), expected[number]):
                    wrong.append(f"job {number}: another answer")
            except Exception as error:
                wrong.append(f"job {number}: {error!r}")
        return wrong

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns in the midst of a forward
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            return [message for messages in pool.map(asked, range(THREADS)) for message in messages]
    finally:
        sys.setswitchinterval(before)


def state_of(model: PreTrainedModel) -> dict:
    """What the modules hold besides each other: each attribute's identity, and copies of buffers."""
    held = {}
    for module_name, module in model.named_modules():
        held |= {(module_name, name): id(value) for name, value in vars(module).items()}
        held |= {(module_name, name): value.clone() for name, value in module.named_buffers(recurse=False)}
    return held


def plans_of(family: TinyFamily) -> list[VisualPlan]:
    return [plan for name, plan in PLANS.items() if family is not QWEN2_VL or "class token" not in name]


def test_threads_get_the_answers_of_one():
    """A sample of the slow tests below."""
    family = INTERNVL[0]
    model = with_telling_class_token(family.sparse(AT_ONCE))
    _, long, two, _, conversation, _ = questions(family)
    jobs = [(plan, question) for plan in (None, PLANS["heads"]) for question in (long, two, conversation)]
    assert wrong_answers(model, jobs) == []


@pytest.mark.parametrize("family", [LLAVA[0], QWEN2_VL, *INTERNVL[:2]], ids=lambda family: family.name)
def test_a_forward_leaves_nothing_in_the_model(family: TinyFamily):
    """Neither a plan nor positions, features, masks or the frequencies of a long prompt."""
    model = family.sparse()
    texts = [as_batch(sample_of([1, *(20 + number % 30 for number in range(length))])) for length in (140, 100)]
    with torch.no_grad():
        expected = model(**texts[1]).logits
        model(**as_batch(family.samples(0)[1]))  # transformers makes the tower ready to return what it is asked for
        before = state_of(model)
        with model.use_plan(RANKED if family is QWEN2_VL else AT_ONCE):
            model(**batch_of(family.samples(0)))
            model.generate(**as_batch(family.samples(0)[2]), max_new_tokens=2, pad_token_id=PAD)
        model(**texts[0])
        after = state_of(model)
        assert before.keys() == after.keys()
        for name, value in before.items():
            assert torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value == after[name], name
        assert torch.equal(model(**texts[1]).logits, expected)


@pytest.mark.slow
@families
def test_threads_ask_under_the_models_own_plan(family: TinyFamily):
    model = with_telling_class_token(family.sparse())
    for plan in plans_of(family) if family is QWEN2_VL else [AT_ONCE, *plans_of(family)]:
        model.set_visual_plan(plan)
        assert wrong_answers(model, [(None, question) for question in questions(family)]) == [], plan


@pytest.mark.slow
@families
def test_threads_ask_under_plans_of_their_own(family: TinyFamily):
    model = with_telling_class_token(family.sparse())
    jobs = [(plan, question) for plan in plans_of(family) for question in questions(family)]
    assert wrong_answers(model, jobs) == []
