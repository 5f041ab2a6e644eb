"""Every way to generate gives what the stock class gives under the dense plan. Under a sparse one a cache is as good
as none.

These are the ways that transformers' `GenerationTesterMixin` tries.
"""

import pytest
import torch
from transformers import PreTrainedModel

from modeling.visual_plan import VisualPlan
from tests.families.family import PAD, TinyFamily, batch_of, relative_error, text_rows
from tests.families.internvl import INTERNVL
from tests.families.llava import LLAVA
from tests.families.llava_next import LLAVA_NEXT
from tests.families.qwen2_vl import QWEN2_VL

DENSE = VisualPlan.dense(3)
PLAN = DENSE.replace(0, heads=1, ffn=5, radius=1).replace(1, attend=False).replace(2, tokens=0.0)
WAYS = {
    "greedy": {},
    "penalties": {"repetition_penalty": 1.2, "bad_words_ids": [[7], [8, 9]], "no_repeat_ngram_size": 2},
    "all logits of the prompt": {"logits_to_keep": 0},
    "sampling": {"do_sample": True, "top_k": 10, "top_p": 0.7, "temperature": 0.7},
    "several samples": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 2},
    "several beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 2.0},
    "sampled beams": {"num_beams": 2, "do_sample": True},
    "dynamic cache": {"cache_implementation": "dynamic"},
}
NEW_TOKENS = 5
RETURNED = {"return_dict_in_generate": True, "output_scores": True}
GREEDY = {"do_sample": False, "pad_token_id": PAD, "eos_token_id": None, **RETURNED}

families = pytest.mark.parametrize(
    "family",
    [
        LLAVA[0],
        *(pytest.param(family, marks=pytest.mark.slow) for family in (LLAVA_NEXT[2], QWEN2_VL, INTERNVL[1])),
    ],
    ids=lambda family: family.name,
)


def generated(model: PreTrainedModel, batch: dict, silent: list[int], **settings):
    """Returns tokens with their scores, logits and states."""
    torch.manual_seed(0)
    return model.generate(
        **batch,
        max_new_tokens=NEW_TOKENS,
        suppress_tokens=silent,
        output_logits=True,
        output_hidden_states=True,
        **{**GREEDY, **settings},
    )


def assert_same(found, expected) -> None:
    assert torch.equal(found.sequences, expected.sequences)
    for name in ("scores", "logits"):
        for step, (one, other) in enumerate(zip(getattr(found, name), getattr(expected, name), strict=True)):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=f"{name} of step {step}")


@families
@pytest.mark.parametrize("way", WAYS)
def test_ways_to_generate(family: TinyFamily, way):
    dense, same, sparse = family.dense(), family.sparse(), family.sparse(PLAN)
    # The last sample's several pictures transformers 5.17 repeats for beams in another order than their tokens.
    batch = batch_of(family.samples(1)[:2], "left")
    silent = [PAD, *sparse.visual_tokens(sparse.config).values()]
    expected = generated(dense, family.stock_inputs(batch), silent, **WAYS[way])
    found = generated(same, batch, silent, **WAYS[way])
    assert_same(found, expected)
    assert found.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length()
    for of_step, states in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert [state.shape for state in of_step] == [state.shape for state in states]
    rows = text_rows(same, batch).repeat_interleave(len(found.hidden_states[0][0]) // len(batch["input_ids"]), 0)
    for own, stock in zip(found.hidden_states[0], expected.hidden_states[0], strict=True):
        assert relative_error(own[rows], stock[rows]) < 1e-5

    planned = generated(sparse, batch, silent, **WAYS[way])
    assert relative_error(planned.logits[0], found.logits[0]) > 1e-3
    if "cache_implementation" not in WAYS[way]:
        assert_same(generated(sparse, batch, silent, **WAYS[way], use_cache=False), planned)


@families
def test_generation_goes_on_from_its_cache(family: TinyFamily):
    """The pictures of the prompt are in the cache, and are not given again."""
    batch = batch_of(family.samples(1)[:2], "left")
    for plan in (DENSE, PLAN):
        model = family.sparse(plan)
        silent = [PAD, *model.visual_tokens(model.config).values()]
        whole = generated(model, batch, silent)
        first = model.generate(**batch, **GREEDY, max_new_tokens=2, suppress_tokens=silent)
        mask = torch.nn.functional.pad(batch["attention_mask"], (0, 2), value=1)
        cached = {"input_ids": first.sequences, "attention_mask": mask, "past_key_values": first.past_key_values}
        rest = model.generate(**cached, **GREEDY, max_new_tokens=NEW_TOKENS - 2, suppress_tokens=silent)
        assert torch.equal(rest.sequences, whole.sequences)
        for one, other in zip((*first.scores, *rest.scores), whole.scores, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@families
def test_generation_from_nothing(family: TinyFamily):
    """From the token that begins a text alone."""
    sparse = family.sparse(PLAN)
    silent = [PAD, *sparse.visual_tokens(sparse.config).values()]
    assert_same(generated(sparse, {}, silent), generated(family.dense(), {}, silent))
