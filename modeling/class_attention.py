"""What a vision tower's class token attends to: scores by which visual tokens are ranked, before the decoder's first layer too.

FasterVLM (arXiv 2412.01818) takes the block whose output is read, VTC-CLS (arXiv 2412.05819) the sum over several up to it. The
tower's own attention is fused and holds no probabilities, so of each block that row is computed once more, from queries and keys
that the block makes anyway.

Shapes: P pictures or tiles, N patches of one, W the tower's hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .vision_flops import CLASS_TOKENS, blocks_read


@dataclass
class ScoredFeatures(BaseModelOutputWithPooling):
    """Features of pictures, and how much the class token attends to each.

    `deepstack_features` holds one list: of each picture, row by row of its features, [rows, blocks] in fp32. By that name
    generation knows what goes with features, and repeats it for beams.
    """

    deepstack_features: list[list[torch.Tensor]] | None = None

    @classmethod
    def of(cls, features: Sequence[torch.Tensor], class_attention: Sequence[torch.Tensor]) -> "ScoredFeatures":
        return cls(pooler_output=list(features), deepstack_features=[list(class_attention)])


def class_attention_of(features: BaseModelOutputWithPooling) -> torch.Tensor | None:
    """[rows of all features, blocks], or None where features came without."""
    return torch.cat(features.deepstack_features[0]) if isinstance(features, ScoredFeatures) else None


@dataclass(frozen=True)
class TowerBlock:
    """Modules of a block whose outputs [P, 1 + N, W] are its queries and, called after that, its keys; the class token first."""

    queries: nn.Module
    keys: nn.Module
    num_heads: int


def llava_class_blocks(tower: nn.Module, read: int | Sequence[int]) -> list[TowerBlock]:
    """Of a LLaVA's tower, the blocks up to the one that is read (`vision_feature_layer`); none where there is no class token."""
    if CLASS_TOKENS.get(tower.config.model_type) != 1:
        return []
    attentions = [block.self_attn for block in tower.encoder.layers[: blocks_read(read, len(tower.encoder.layers))]]
    return [TowerBlock(one.q_proj, one.k_proj, one.num_heads) for one in attentions]


class ClassAttentionMixin:
    """For a model whose features come with what the tower's class token attends to, where the plan or the caller asks."""

    blocks_of: Callable[[nn.Module, int | Sequence[int]], list[TowerBlock]]
    """Of the tower, the blocks up to the one that is read."""

    def class_blocks(self, vision_feature_layer: int | list[int] | None = None) -> list[TowerBlock]:
        """The tower's blocks whose class token may rank visual tokens; None: the config's layer is read."""
        read = self.config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
        return self.blocks_of(self.vision_tower, read)

    def scored_features(
        self,
        encode: Callable[..., BaseModelOutputWithPooling],
        arranged: Callable[[torch.Tensor], Sequence[torch.Tensor]],
        vision_feature_layer: int | list[int] | None,
        tower_layers: int | None,
    ) -> BaseModelOutputWithPooling:
        """Runs `encode` and adds what the class token attends to in the last blocks, if that is any.

        Args:
            encode: pictures through tower and projector; takes `vision_feature_layer`.
            arranged: [P, N, blocks] -> of each picture [rows of its features, blocks].
            tower_layers: how many blocks; None: as the plan in force asks.
        """
        num_last = self.language_model.visual_plan.tower_layers if tower_layers is None else tower_layers
        blocks = self.class_blocks(vision_feature_layer)
        last = blocks[max(len(blocks) - num_last, 0) :]
        if not last:
            return encode(vision_feature_layer=vision_feature_layer)
        with _class_rows(last) as rows:
            features = encode(vision_feature_layer=vision_feature_layer)
        return ScoredFeatures(**features, deepstack_features=[list(arranged(torch.stack(rows, dim=-1)))])


@contextmanager
def _class_rows(blocks: Sequence[TowerBlock]) -> Iterator[list[torch.Tensor]]:
    """Inside, a forward of the tower appends, block by block, the class token's attention to patches: [P, N], mean over heads."""
    rows: list[torch.Tensor] = []
    query: list[torch.Tensor] = []

    def keep_query(_, arguments, output: torch.Tensor) -> None:
        query.append(output[:, :1])

    def add_row(num_heads: int) -> Callable:
        @torch.no_grad()
        def add(_, arguments, output: torch.Tensor) -> None:
            heads = (part.float().unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in (query.pop(), output))
            of_class, keys = heads  # [P, heads, 1, H], [P, heads, 1 + N, H]
            weights = (of_class @ keys.transpose(2, 3) * keys.shape[-1] ** -0.5).softmax(-1)
            rows.append(weights[:, :, 0, 1:].mean(1))

        return add

    handles = [block.queries.register_forward_hook(keep_query) for block in blocks]
    handles += [block.keys.register_forward_hook(add_row(block.num_heads)) for block in blocks]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()
