"""Reads a SentencePiece BPE model (tokenizer.model) as a tokenizer of the `tokenizers` library.

Both have the same pieces with the same ids. SentencePiece joins the two neighbours whose union is the piece of the
highest score (arXiv 1808.06226). A list of merges in the order of those scores does the same. Tokens that were added
later keep their ids too. Some stand after the pieces, others in the place of a piece that was kept free for them.
"""

from pathlib import Path

from google.protobuf.message import DecodeError
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers.convert_slow_tokenizer import import_protobuf

from modeling.user_error import UserError

SPACE = "▁"
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # ModelProto.SentencePiece.Type
BPE_MODEL = 2  # TrainerSpec.ModelType
MOST_CHARACTERS = 1000
"""Of the longest piece. Ways to join it are tried at each of its characters."""


def read_sentencepiece(path: Path, added: dict[int, AddedToken], legacy: bool) -> Tokenizer:
    """Returns the tokenizer of a SentencePiece file with the tokens that were added to it.

    Args:
        path: the SentencePiece file.
        added: id: token.
        legacy: where the model puts a space before a text, it puts one after each added token as well.

    Raises:
        UserError: it is not such a file, not byte-pair encoding, or it rewrites its text before cutting it.
    """
    model = import_protobuf().ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise UserError(f"{path}: not a SentencePiece model ({error})") from None
    if model.trainer_spec.model_type != BPE_MODEL:
        raise UserError(f"{path}: got a SentencePiece model of another kind, allowed: byte-pair encoding")
    if model.normalizer_spec.precompiled_charsmap or model.normalizer_spec.remove_extra_whitespaces:
        raise UserError(f"{path}: rewrites its text first, not supported; a tokenizer.json beside it would be used")

    longest = max((len(piece.piece) for piece in model.pieces), default=0)
    if longest > MOST_CHARACTERS:
        raise UserError(f"{path}: got a piece of {longest:,} characters, allowed: up to {MOST_CHARACTERS}")
    pieces = [added[index].content if index in added else piece.piece for index, piece in enumerate(model.pieces)]
    scores = {
        piece.piece: piece.score
        for index, piece in enumerate(model.pieces)
        if piece.type == NORMAL and index not in added
    }
    tokenizer = Tokenizer(
        BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=_merges(scores),
            unk_token=model.trainer_spec.unk_piece,
            fuse_unk=True,
            byte_fallback=model.trainer_spec.byte_fallback,
        )
    )
    _set_up_spaces(tokenizer, model.normalizer_spec.add_dummy_prefix, legacy)
    model_tokens = {
        index: AddedToken(piece.piece, normalized=False, special=piece.type == CONTROL)
        for index, piece in enumerate(model.pieces)
        if piece.type in (CONTROL, USER_DEFINED)
    }
    for _, token in sorted((model_tokens | added).items()):
        tokenizer.add_tokens([token])
    return tokenizer


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Returns every way to join two pieces into a third, the highest score first."""
    scored = []
    for piece, score in scores.items():
        parts = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        scored += [(score, pair) for pair in parts if pair[0] in scores and pair[1] in scores]
    return [pair for _, pair in sorted(scored, key=lambda merge: -merge[0])]


def _set_up_spaces(tokenizer: Tokenizer, prefix: bool, legacy: bool) -> None:
    """Makes spaces part of the pieces, where they are written ▁. With `prefix` one is put before the text."""
    decoding_steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        decoding_steps.append(decoders.Strip(" ", left=1, right=0))
    tokenizer.decoder = decoders.Sequence(decoding_steps)
    if prefix and not legacy:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
    else:
        prepend = [normalizers.Prepend(SPACE)] if prefix else []
        tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", SPACE)])
