"""LLaVA with a sparse text decoder. It has the same weights under the same names, and runs under a visual plan."""

from functools import partial
from typing import Any

import torch
from transformers import AutoModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.models.llava.configuration_llava import LlavaConfig
from transformers.models.llava.modeling_llava import (
    LlavaCausalLMOutputWithPast,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaModelOutputWithPast,
    LlavaMultiModalProjector,
    LlavaPreTrainedModel,
)

from .attention_kinds import SparsePreTrainedMixin
from .class_attention import ClassAttentionMixin, class_attention_of, llava_class_blocks
from .configuration_sparse_llava import TEXT_TYPES, SparseLlavaConfig, image_grids, vision_macs
from .planned_model import PlannedModelMixin
from .processing_sparse_llava import SparseLlavaProcessor
from .sparse_multimodal import (
    SparseMultimodalMixin,
    embedded,
    read_prompt,
    with_features,
)
from .sparse_text import LAYER_CLASS_NAMES, sparse_decoder
from .visual_layout import Images, num_tokens


class SparseLlavaPreTrainedModel(SparsePreTrainedMixin, LlavaPreTrainedModel):
    config: SparseLlavaConfig
    config_class = SparseLlavaConfig
    _no_split_modules = LAYER_CLASS_NAMES


class SparseLlavaModel(PlannedModelMixin, ClassAttentionMixin, SparseLlavaPreTrainedModel, LlavaModel):
    tower_blocks = staticmethod(llava_class_blocks)

    def __init__(self, config: SparseLlavaConfig):
        # Not LlavaModel's constructor, which would build a dense decoder for nothing.
        LlavaPreTrainedModel.__init__(self, config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = LlavaMultiModalProjector(config)
        self.language_model = sparse_decoder(config.text_config)
        self.post_init()
        self.put_config_plan_in_force()

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        tower_layers: int | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Returns LLaVA's features, with the class token's attention in the last `tower_layers` layers.

        If `tower_layers` is None, they are as many as the plan in force asks for.
        """
        encode = partial(
            super().get_image_features,
            pixel_values,
            vision_feature_select_strategy=vision_feature_select_strategy,
            **kwargs,
        )
        return self.scored_features(encode, list, vision_feature_layer, tower_layers)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        mm_encoder_outputs: dict | None = None,
        supervised: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> LlavaModelOutputWithPast:
        """Runs LLaVA's forward, and tells the decoder where image tokens are and which grid each image has."""
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
            features["image"] = self.get_image_features(
                pixel_values, vision_feature_layer, vision_feature_select_strategy
            )
        rows = None
        if kinds is not None:
            rows, grids = torch.cat(tuple(features["image"].pooler_output)), image_grids(self.config)
            kwargs["visual_mask"] = kinds > 0
            kwargs["images"] = (grids,) * (len(rows) // num_tokens(grids))
            kwargs["class_attention"] = class_attention_of(features["image"])
            # Put in place here: LLaVA's own forward waits for the device to count image tokens.
            embeddings = with_features(embeddings, kinds > 0, rows)
        outputs = super().forward(attention_mask=attention_mask, inputs_embeds=embeddings, **kwargs)
        if isinstance(outputs, LlavaModelOutputWithPast):
            outputs.image_hidden_states = rows
        return outputs


class SparseLlavaForConditionalGeneration(
    SparseMultimodalMixin, SparseLlavaPreTrainedModel, LlavaForConditionalGeneration
):
    stock_class = LlavaForConditionalGeneration
    processor_class = SparseLlavaProcessor
    model_class = SparseLlavaModel
    text_types = TEXT_TYPES
    image_grids = staticmethod(image_grids)
    vision_macs = staticmethod(vision_macs)

    @staticmethod
    def random_pictures(config: LlavaConfig, images: Images, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Returns random inputs of the forward for pictures that become these grids."""
        size = config.vision_config.image_size
        return {
            "pixel_values": torch.randn(len(images), config.vision_config.num_channels, size, size, generator=generator)
        }

    def __init__(self, config: SparseLlavaConfig):
        LlavaPreTrainedModel.__init__(self, config)
        self.build()

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
    ) -> LlavaCausalLMOutputWithPast | CausalLMOutputWithPast:
        """Runs LLaVA's forward. See `SparseMultimodalMixin.sparse_forward` for `labels` and `logits_mask`."""
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


__all__ = ["SparseLlavaForConditionalGeneration", "SparseLlavaModel", "SparseLlavaPreTrainedModel"]
