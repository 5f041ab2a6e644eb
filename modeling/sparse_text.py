"""Text decoders of transformers, made sparse. They have the same weights under the same names."""

import torch
from transformers import PreTrainedConfig
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRotaryEmbedding,
)
from transformers.models.mistral.modeling_mistral import (
    MistralDecoderLayer,
    MistralModel,
    MistralPreTrainedModel,
    MistralRotaryEmbedding,
)
from transformers.models.phi3.modeling_phi3 import (
    Phi3DecoderLayer,
    Phi3Model,
    Phi3PreTrainedModel,
    Phi3RotaryEmbedding,
)
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2DecoderLayer,
    Qwen2Model,
    Qwen2PreTrainedModel,
    Qwen2RotaryEmbedding,
)

from .narrow_linear import Selection, narrow_parts
from .sparse_decoder import SparseDecoderMixin
from .sparse_layer import Projection, SparseDecoderLayerMixin
from .user_error import UserError


class SparseLlamaDecoderLayer(SparseDecoderLayerMixin, LlamaDecoderLayer):
    pass


class SparseLlamaModel(SparseDecoderMixin, LlamaModel):
    def __init__(self, config: PreTrainedConfig):
        # Not LlamaModel's constructor, which would build dense layers for nothing. The same holds below.
        LlamaPreTrainedModel.__init__(self, config)
        self.build(SparseLlamaDecoderLayer, LlamaRotaryEmbedding(config=config))


class SparseMistralDecoderLayer(SparseDecoderLayerMixin, MistralDecoderLayer):
    pass


class SparseMistralModel(SparseDecoderMixin, MistralModel):
    def __init__(self, config: PreTrainedConfig):
        refuse_window(config.sliding_window, config)
        MistralPreTrainedModel.__init__(self, config)
        self.build(SparseMistralDecoderLayer, MistralRotaryEmbedding(config=config))


class SparseQwen2DecoderLayer(SparseDecoderLayerMixin, Qwen2DecoderLayer):
    pass


class SparseQwen2Model(SparseDecoderMixin, Qwen2Model):
    def __init__(self, config: PreTrainedConfig):
        refuse_window(config.sliding_window if "sliding_attention" in config.layer_types else None, config)
        Qwen2PreTrainedModel.__init__(self, config)
        self.build(SparseQwen2DecoderLayer, Qwen2RotaryEmbedding(config=config))


class SparsePhi3DecoderLayer(SparseDecoderLayerMixin, Phi3DecoderLayer):
    """Queries, keys and values are rows of one projection. Gate and up are rows of another."""

    def __init__(self, config: PreTrainedConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self._query_size = config.num_attention_heads * self.self_attn.head_dim
        self._kv_size = config.num_key_value_heads * self.self_attn.head_dim
        self._neurons = config.intermediate_size

    def queries_keys_values(
        self, normed: torch.Tensor, query_rows: Selection = None, key_rows: Selection = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        parts = [_part(0, self._query_size, query_rows), *self._parts_of_keys_and_values(key_rows)]
        queries, keys, values = narrow_parts(self.self_attn.qkv_proj, normed, parts)
        return queries, keys, values

    def keys_values(self, normed: torch.Tensor, rows: Selection = None) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = narrow_parts(self.self_attn.qkv_proj, normed, self._parts_of_keys_and_values(rows))
        return keys, values

    def _parts_of_keys_and_values(self, rows: Selection) -> list[Selection]:
        begins = (self._query_size, self._query_size + self._kv_size)
        return [_part(begin, self._kv_size, rows) for begin in begins]

    def neurons(self, normed: torch.Tensor, rows: Selection = None) -> torch.Tensor:
        parts = [_part(begin, self._neurons, rows) for begin in (0, self._neurons)]
        gate, up = narrow_parts(self.mlp.gate_up_proj, normed, parts)
        return self.mlp.activation_fn(gate) * up

    def projections(self) -> dict[str, Projection]:
        qkv = (self._query_size, self._kv_size, self._kv_size)
        return {
            "self_attn.qkv_proj": Projection("heads", "rows", qkv),
            "self_attn.o_proj": Projection("heads", "columns", (self._query_size,)),
            "mlp.gate_up_proj": Projection("ffn", "rows", (self._neurons, self._neurons)),
            "mlp.down_proj": Projection("ffn", "columns", (self._neurons,)),
        }


class SparsePhi3Model(SparseDecoderMixin, Phi3Model):
    def __init__(self, config: PreTrainedConfig):
        refuse_window(config.sliding_window, config)
        for name, allowed in (("resid_pdrop", 0.0), ("partial_rotary_factor", 1.0)):
            value = {**config.to_dict(), **config.rope_parameters}.get(name, allowed)
            if value != allowed:
                raise UserError(f"text_config.{name}: got {value}, allowed: {allowed}")
        Phi3PreTrainedModel.__init__(self, config)
        self.build(SparsePhi3DecoderLayer, Phi3RotaryEmbedding(config=config))


DECODER_OF_TYPE = {
    "sparse_llama": SparseLlamaModel,
    "sparse_mistral": SparseMistralModel,
    "sparse_phi3": SparsePhi3Model,
    "sparse_qwen2": SparseQwen2Model,
}
LAYER_CLASS_NAMES = [
    layer.__name__
    for layer in (SparseLlamaDecoderLayer, SparseMistralDecoderLayer, SparsePhi3DecoderLayer, SparseQwen2DecoderLayer)
]
"""Names of the layer classes, which no device map may split."""


def sparse_decoder(config: PreTrainedConfig) -> SparseDecoderMixin:
    """Returns a new decoder for a config of configuration_sparse_text.py."""
    return DECODER_OF_TYPE[config.model_type](config)


def refuse_window(window: int | None, config: PreTrainedConfig) -> None:
    """Raises UserError if a sliding window of so many tokens would hide a part of the prompt."""
    if window is not None and window < config.max_position_embeddings:
        raise UserError(
            f"text_config.sliding_window: got {window}, allowed: null or at least max_position_embeddings "
            f"({config.max_position_embeddings}); every text row sees the whole prompt"
        )


def _part(begin: int, size: int, rows: Selection) -> Selection:
    """Returns the `size` outputs from number `begin` on, or `rows` of these: the first n or indices."""
    if isinstance(rows, torch.Tensor):
        return rows + begin
    assert not isinstance(rows, slice), "a plan gives a number or indices"
    return slice(begin, begin + (size if rows is None else rows))
