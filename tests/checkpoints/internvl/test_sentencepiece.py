"""The same ids as SentencePiece's own rule gives, spelt out in `sentencepiece_ids`."""

import random

import pytest
from tokenizers import AddedToken

from checkpoints.internvl.sentencepiece import read_sentencepiece
from tests.checkpoints.internvl.published_internvl import WORDS, sentencepiece_ids, sentencepiece_model

FREE = "[UNUSED_TOKEN_0]"


@pytest.mark.parametrize("prefix", [False, True])
def test_ids_are_sentencepieces(tmp_path, prefix):
    model = sentencepiece_model([*WORDS, FREE], dummy_prefix=prefix)
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    turn, picture = len(model.pieces) - 1, len(model.pieces)
    added = {turn: AddedToken("<|end|>", normalized=False), picture: AddedToken("<img>", normalized=False)}
    tokenizer = read_sentencepiece(tmp_path / "tokenizer.model", added, legacy=True)
    letters = random.Random(0)
    for _ in range(200):
        first, second = ("".join(letters.choices("helowrd é\n", k=20)) for _ in range(2))
        pieces = sentencepiece_ids(model, first), sentencepiece_ids(model, second)
        assert tokenizer.encode(first).ids == pieces[0]
        assert tokenizer.encode(f"{first}<|end|>{second}<img>").ids == [*pieces[0], turn, *pieces[1], picture]
        assert tokenizer.decode(pieces[0]) == first
