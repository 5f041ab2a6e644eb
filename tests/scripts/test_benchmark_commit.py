"""Two copies of modeling/ are timed on the same weights, and only if they compute the same."""

import pytest
import torch

from modeling.user_error import UserError
from scripts import benchmark_commit
from scripts.benchmark_commit import compare, small_llava, unpack


def test_two_that_agree_are_timed_and_others_refused(monkeypatch):
    monkeypatch.setattr(benchmark_commit, "NEW_TOKENS", 2)
    before, now = small_llava("modeling"), small_llava("modeling")
    assert "ms" in compare(before, now, "decode", "layers", repeats=1)
    with torch.no_grad():
        now.model.lm_head.weight[0] += 1
    with pytest.raises(UserError, match="prefill, layers: the two commits give other logits"):
        compare(before, now, "prefill", "layers", repeats=1)


def test_a_commit_that_git_does_not_know_is_refused(tmp_path):
    with pytest.raises(UserError, match="commit: 'no-such'"):
        unpack("no-such", tmp_path)
