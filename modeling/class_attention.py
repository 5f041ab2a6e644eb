"""The attention of a vision tower's class token, as scores by which visual tokens are ranked.

These scores are known before the decoder's first layer.
FasterVLM (arXiv 2412.01818) takes the attention in the block whose output is read.
VTC-CLS (arXiv 2412.05819) takes the sum over several blocks, the last of them that one.
The tower's own attention is fused and gives no probabilities.
The class token's row of each block is therefore computed once more, from the states that enter the block.
The tower returns these, so that nothing of a forward is left in the tower, which other threads use as well.

Shapes: P pictures or tiles, N patches of one, W the tower's hidden size, H head_dim.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .sparse_decoder import SparseDecoderMixin
from .vision_flops import CLASS_TOKENS, num_blocks_read


@dataclass
class ScoredFeatures(BaseModelOutputWithPooling):
    """Features of pictures, and how much the class token attends to each.

    `deepstack_features` holds one list with a tensor [features of the picture, blocks], fp32, for each picture.
    Generation of transformers knows that name: it repeats such lists for beams, together with the features.
    """

    deepstack_features: list[list[torch.Tensor]] | None = None

    @classmethod
    def of(cls, features: Sequence[torch.Tensor], class_attention: Sequence[torch.Tensor]) -> "ScoredFeatures":
        """Returns features [rows, D] and class attention [rows, blocks] of pictures as one output."""
        return cls(pooler_output=list(features), deepstack_features=[list(class_attention)])


def class_attention_of(features: BaseModelOutputWithPooling) -> torch.Tensor | None:
    """Returns the class attention [rows of all features, blocks], or None where the features came without it."""
    if not isinstance(features, ScoredFeatures):
        return None
    assert features.deepstack_features is not None
    return torch.cat(features.deepstack_features[0])


@dataclass(frozen=True)
class TowerBlock:
    """A block of a vision tower, by the modules that make its queries and keys of the states that enter it.

    Attributes:
        queries: modules that make the queries [P, rows, W] of states [P, rows, W], one after another.
        keys: the same for the keys.
        num_heads: attention heads of the block.
    """

    queries: tuple[nn.Module, ...]
    keys: tuple[nn.Module, ...]
    num_heads: int

    @torch.no_grad()
    def class_attention(self, states: torch.Tensor) -> torch.Tensor:
        """Returns the class token's attention to patches [P, N], fp32, mean over heads.

        Args:
            states: [P, 1 + N, W], those that enter the block, the class token's first.
        """
        query, keys = (
            reduce(lambda rows, module: module(rows), modules, rows)
            .float()
            .unflatten(-1, (self.num_heads, -1))
            .transpose(1, 2)
            for modules, rows in ((self.queries, states[:, :1]), (self.keys, states))
        )  # [P, heads, 1, H], [P, heads, 1 + N, H]
        weights = (query @ keys.transpose(2, 3) * keys.shape[-1] ** -0.5).softmax(-1)
        return weights[:, :, 0, 1:].mean(1)


def llava_class_blocks(tower: nn.Module, read: int | Sequence[int]) -> list[TowerBlock]:
    """Returns the blocks of a LLaVA's tower up to the one that is read, or none if the tower has no class token.

    Args:
        read: as a LLaVA's `vision_feature_layer`.
    """
    model: Any = tower
    if CLASS_TOKENS.get(model.config.model_type) != 1:
        return []
    if model.config.model_type == "dinov2":
        blocks, block_of = model.encoder.layer, _dinov2_block
    else:
        blocks, block_of = model.encoder.layers, _clip_block
    return [block_of(block) for block in blocks[: num_blocks_read(read, len(blocks))]]


def _clip_block(block: Any) -> TowerBlock:
    attention = block.self_attn
    return TowerBlock((block.layer_norm1, attention.q_proj), (block.layer_norm1, attention.k_proj), attention.num_heads)


def _dinov2_block(block: Any) -> TowerBlock:
    attention = block.attention
    if hasattr(attention, "q_proj"):
        query, key = attention.q_proj, attention.k_proj
    else:  # older transformers
        attention = attention.attention
        query, key = attention.query, attention.key
    return TowerBlock((block.norm1, query), (block.norm1, key), attention.num_attention_heads)


class ClassAttentionMixin:
    """Adds the class token's attention to the features of pictures, where the plan or the caller asks for it."""

    tower_blocks: Callable[[nn.Module, Any], list[TowerBlock]]
    """Given the tower and the layer that is read, returns the tower's blocks up to that one."""

    if TYPE_CHECKING:  # attributes of the model; transformers reads annotations of `config` at run time
        config: PreTrainedConfig
        vision_tower: nn.Module
        language_model: SparseDecoderMixin

    def class_blocks(self, vision_feature_layer: int | list[int] | None = None) -> list[TowerBlock]:
        """Returns the tower's blocks whose class token may rank visual tokens.

        Args:
            vision_feature_layer: the layer that is read. None means the config's.
        """
        read = self.config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
        return self.tower_blocks(self.vision_tower, read)

    def scored_features(
        self,
        encode: partial[BaseModelOutputWithPooling],
        to_pictures: Callable[[torch.Tensor], Sequence[torch.Tensor]],
        vision_feature_layer: int | list[int] | None,
        tower_layers: int | None,
    ) -> BaseModelOutputWithPooling:
        """Runs `encode`. Returns its features, with the class token's attention in the last blocks if any are asked
        for.

        Args:
            encode: runs pictures through tower and projector. It takes `vision_feature_layer` and
                `output_hidden_states`.
            to_pictures: turns attention [P, N, blocks] into one tensor [rows of its features, blocks] per picture.
            vision_feature_layer: the layer that is read. None means the config's.
            tower_layers: number of last blocks. None means as many as the plan in force asks for.
        """
        num_last = self.language_model.visual_plan.tower_layers if tower_layers is None else tower_layers
        blocks = self.class_blocks(vision_feature_layer)
        entered = range(max(len(blocks) - num_last, 0), len(blocks))
        if not entered:
            return encode(vision_feature_layer=vision_feature_layer)
        read = self.config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
        asked = encode.keywords.get("output_hidden_states")
        states = True if asked else [*entered, *([read] if isinstance(read, int) else read)]
        features = encode(vision_feature_layer=vision_feature_layer, output_hidden_states=states)
        assert features.hidden_states is not None
        attention = [blocks[number].class_attention(features.hidden_states[number]) for number in entered]
        # Hidden states would stay in memory as long as the features.
        kept = {name: value for name, value in features.items() if asked or name != "hidden_states"}
        return ScoredFeatures(**kept, deepstack_features=[list(to_pictures(torch.stack(attention, dim=-1)))])
