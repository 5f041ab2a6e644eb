"""InternVL with a sparse text decoder. It has the same weights under the same names, and runs under a visual plan.

A picture is a run of image tokens. Its tiles follow one another, and the thumbnail is the last. Each has its own grid.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.models.internvl.configuration_internvl import InternVLConfig
from transformers.models.internvl.modeling_internvl import (
    InternVLForConditionalGeneration,
    InternVLModel,
    InternVLMultiModalProjector,
    InternVLPreTrainedModel,
)

from .attention_kinds import SparsePreTrainedMixin
from .class_attention import ClassAttentionMixin, TowerBlock, class_attention_of
from .configuration_sparse_internvl import TEXT_TYPES, SparseInternVLConfig, image_grids, tile_grid, vision_macs
from .planned_model import PlannedModelMixin
from .processing_sparse_internvl import SparseInternVLProcessor
from .sparse_multimodal import (
    SparseMultimodalMixin,
    embedded,
    read_prompt,
    visual_runs,
    with_features,
)
from .sparse_text import LAYER_CLASS_NAMES, sparse_decoder
from .user_error import UserError
from .vision_flops import num_blocks_read
from .visual_layout import Images


def internvl_class_blocks(tower: nn.Module, read: int) -> list[TowerBlock]:
    """Returns the blocks of InternVL's tower up to the one that is read.

    Args:
        read: as `vision_feature_layer`.
    """
    model: Any = tower
    blocks = model.encoder.layer
    return [
        TowerBlock(
            (block.layernorm_before, block.attention.q_proj, block.attention.q_norm),
            (block.layernorm_before, block.attention.k_proj, block.attention.k_norm),
            block.attention.num_heads,
        )
        for block in blocks[: num_blocks_read(read, len(blocks))]
    ]


class SparseInternVLPreTrainedModel(SparsePreTrainedMixin, InternVLPreTrainedModel):
    config: SparseInternVLConfig
    config_class = SparseInternVLConfig
    _no_split_modules = LAYER_CLASS_NAMES


class SparseInternVLModel(PlannedModelMixin, ClassAttentionMixin, SparseInternVLPreTrainedModel, InternVLModel):
    tower_blocks = staticmethod(internvl_class_blocks)

    def __init__(self, config: SparseInternVLConfig):
        # Not InternVLModel's constructor, which would build a dense decoder for nothing.
        InternVLPreTrainedModel.__init__(self, config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = InternVLMultiModalProjector(config)
        self.language_model = sparse_decoder(config.text_config)
        self.post_init()
        self.put_config_plan_in_force()

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        vision_feature_layer: int | None = None,
        vision_feature_select_strategy: str | None = None,
        tower_layers: int | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Returns InternVL's features, with the class token's attention in the last `tower_layers` layers.

        Each tile has its own class token. The attention to a visual token is the mean over the patches that it is made
        of. If `tower_layers` is None, they are as many as the plan in force asks for.
        """

        def to_pictures(attention: torch.Tensor) -> list[torch.Tensor]:
            tower = self.config.vision_config
            grid = [size // patch for size, patch in zip(tower.image_size, tower.patch_size, strict=True)]
            merged = self.pixel_shuffle(attention.unflatten(1, grid), scale_factor=self.config.downsample_ratio)
            return list(merged.flatten(1, 2).unflatten(2, (-1, attention.shape[2])).mean(2))

        encode = partial(
            super().get_image_features,
            pixel_values,
            vision_feature_select_strategy=vision_feature_select_strategy,
            **kwargs,
        )
        return self.scored_features(encode, to_pictures, vision_feature_layer, tower_layers)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
        supervised: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Runs InternVL's forward, and tells the decoder where image tokens are and which tiles each picture has.

        Raises:
            UserError: image tokens without pictures, or a run of them that is no whole number of tiles.
        """
        features, embedding = dict(mm_encoder_outputs or {}), self.get_input_embeddings()
        kinds, attention_mask, kwargs["supervised"] = read_prompt(
            (self.config.image_token_id,),
            input_ids,
            inputs_embeds,
            embedding,
            pixel_values is not None or bool(features),
            attention_mask,
            supervised,
        )
        embeddings = embedded(input_ids, inputs_embeds, embedding)
        if pixel_values is not None:
            features["image"] = self.get_image_features(pixel_values)
        if kinds is not None:
            kwargs["visual_mask"] = kinds > 0
            kwargs["images"] = self._images(kinds)
            kwargs["class_attention"] = class_attention_of(features["image"])
            # Put in place here: InternVL's own forward waits for the device to count image tokens.
            rows = torch.cat([tile.flatten(0, -2) for tile in features["image"].pooler_output])
            embeddings = with_features(embeddings, kinds > 0, rows)
        return super().forward(attention_mask=attention_mask, inputs_embeds=embeddings, **kwargs)

    def _images(self, kinds: torch.Tensor) -> Images:
        """Returns the grids of the pictures among the kinds of tokens [B, S], which lie on the host.

        Raises:
            UserError: a picture is no whole number of tiles.
        """
        grid, (_, begin, end) = tile_grid(self.config), visual_runs(kinds)
        size, lengths = grid[0] * grid[1], end - begin
        for length in lengths[lengths % size > 0].tolist():
            raise UserError(f"image tokens: got {length} in a row, allowed: multiples of {size}, one tile's")
        return tuple((grid,) * tiles for tiles in (lengths // size).tolist())


class SparseInternVLForConditionalGeneration(
    SparseMultimodalMixin, SparseInternVLPreTrainedModel, InternVLForConditionalGeneration
):
    stock_class = InternVLForConditionalGeneration
    processor_class = SparseInternVLProcessor
    model_class = SparseInternVLModel
    text_types = TEXT_TYPES
    image_grids = staticmethod(image_grids)
    vision_macs = staticmethod(vision_macs)

    def __init__(self, config: SparseInternVLConfig):
        InternVLPreTrainedModel.__init__(self, config)
        self.build()

    @staticmethod
    def random_pictures(config: InternVLConfig, images: Images, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Returns random inputs of the forward for pictures that become these grids."""
        size = (config.vision_config.num_channels, *config.vision_config.image_size)
        return {"pixel_values": torch.randn(sum(map(len, images)), *size, generator=generator)}

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        logits_mask: torch.Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Runs InternVL's forward. See `SparseMultimodalMixin.sparse_forward` for `labels` and `logits_mask`."""
        return self.sparse_forward(
            super().forward,
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            logits_to_keep=logits_to_keep,
            logits_mask=logits_mask,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )


__all__ = ["SparseInternVLForConditionalGeneration", "SparseInternVLModel", "SparseInternVLPreTrainedModel"]
