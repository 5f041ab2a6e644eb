"""The kinds of attention that a decoder over two streams has, and the refusal of others."""

from typing import Any

from transformers import AttentionInterface

from .user_error import UserError

ALLOWED = ("sdpa", "eager")


def refuse_attention(kind: str) -> None:
    """Raises UserError for a kind of attention, as `attn_implementation` names it, that the decoder does not have."""
    if kind not in ALLOWED:
        raise UserError(
            f"attn_implementation: got {kind!r}, allowed: {', '.join(map(repr, ALLOWED))} (masks tell which visual "
            "tokens a text row sees, and kernels of flash and flex attention take no such masks)"
        )


class SparsePreTrainedMixin:
    """Says what a decoder over two streams cannot do. It is mixed in before the stock `...PreTrainedModel`."""

    _supports_flash_attn = False
    _supports_flex_attn = False
    _supports_attention_backend = False
    _can_compile_fullgraph = False

    def get_correct_attn_implementation(self, requested_attention: str | None, *args: Any, **kwargs: Any) -> str:
        """Returns the kind of attention for what is asked. Raises UserError for a kind that the decoder does not have.

        transformers asks this where a model is built and where its attention is set.
        """
        if requested_attention is not None and requested_attention in AttentionInterface().valid_keys():
            refuse_attention(requested_attention)
        return super().get_correct_attn_implementation(requested_attention, *args, **kwargs)  # type: ignore[misc]
