"""What `--model squint` takes and refuses, and where its answers end."""

from types import SimpleNamespace

import pytest
import torch
from lmms_eval.models import get_model

from checkpoints.lmms_eval.model import MAX_NEW_TOKENS, Squint, generation_config, own_device, until
from modeling.user_error import UserError

pytestmark = pytest.mark.slow

TOKENIZER = SimpleNamespace(eos_token_id=2, pad_token_id=0)


def test_lmms_eval_knows_it_by_its_name():
    assert get_model("squint") is Squint and not Squint.is_simple


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ("pretrained=x,attn=sdpa", {}, "--model_args: got 'attn', allowed: pretrained, dtype, trust_remote_code"),
        ("pretrained=x,dtype=int8", {}, "dtype: got 'int8', allowed: auto, float32, bfloat16, float16"),
        ("pretrained=x,trust_remote_code=no", {}, "trust_remote_code: got 'no', allowed: True, False"),
        ("pretrained=x", {"batch_size": "auto"}, "--batch_size: got 'auto', allowed: integers from 1"),
        ("pretrained=x", {"batch_size": 0}, "--batch_size: got 0, allowed: integers from 1"),
        ("pretrained=x", {"device": "gpu"}, "--device: got 'gpu'"),
        ("pretrained=no/such/folder", {}, "no/such/folder"),
    ],
)
def test_what_is_not_allowed_is_refused_in_one_line(arguments, options, message):
    with pytest.raises(UserError, match=message) as refused:
        Squint.create_from_arg_string(arguments, options)
    assert "\n" not in str(refused.value)


def test_each_of_several_processes_has_its_own_device():
    alone = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
    second = SimpleNamespace(num_processes=2, device=torch.device("cuda:1"))
    assert own_device(alone, None) == torch.device("cpu")
    assert own_device(alone, "cuda:1") == torch.device("cuda:1")
    assert own_device(second, None) == own_device(second, "cuda") == torch.device("cuda:1")
    for shared in ("cuda:0", "cpu"):
        with pytest.raises(UserError, match=f"--device: got '{shared}', allowed with several processes: 'cuda'"):
            own_device(second, shared)


@pytest.mark.parametrize(
    "text, stops, left",
    [
        ("a\n\nb", "\n\n", "a"),
        ("yes ASSISTANT: no", ["ASSISTANT:"], "yes"),
        ("a b c", ["c", "b"], "a"),
        ("a b c", ["", "d"], "a b c"),
        ("a", None, "a"),
    ],
)
def test_answers_end_at_a_stop(text, stops, left):
    assert until(text, stops) == left


def test_settings_of_tasks():
    pope = {"max_new_tokens": 128, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}
    greedy, default = generation_config(pope, TOKENIZER), generation_config({"until": ["\n"]}, TOKENIZER)
    assert (greedy.do_sample, greedy.max_new_tokens, greedy.temperature) == (False, 128, None)
    assert (default.do_sample, default.max_new_tokens, default.num_beams) == (False, MAX_NEW_TOKENS, 1)
    sampled = generation_config({"temperature": 0.7, "top_p": 0.9, "image_aspect_ratio": "pad"}, TOKENIZER)
    assert (sampled.do_sample, sampled.temperature, sampled.top_p) == (True, 0.7, 0.9)
    assert all((one.eos_token_id, one.pad_token_id) == (2, 0) for one in (greedy, default, sampled))


def test_other_kinds_of_tasks_are_refused():
    model = Squint.__new__(Squint)
    request = SimpleNamespace(task_name="seed_ppl")
    for ask in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(UserError, match="task seed_ppl: asks"):
            ask([request])


@pytest.mark.parametrize("kind, name", [("video", "video"), ("audio", "sound")])
def test_videos_and_sounds_are_refused(kind, name):
    model = Squint.__new__(Squint)
    model.task_dict = {"task": {"test": [{}]}}
    content = [{"type": kind, "url": "x"}, {"type": "text", "text": "what ?"}]
    with pytest.raises(UserError, match=f"task task: got a {name}, allowed: texts and pictures"):
        model._conversation("what ?", lambda doc: [{"role": "user", "content": content}], {}, 0, "task", "test")
