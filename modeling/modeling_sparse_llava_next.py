"""LLaVA-NeXT with a sparse text decoder. It has the same weights under the same names, and runs under a visual plan.

A picture is a run of image tokens. First comes the whole picture as one tile. Then come all tiles as one grid, cut to
the picture's proportions, with a newline after each row. A newline replaces an image token too, but it shows nothing,
so it is text to the plan.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.models.llava_next.configuration_llava_next import LlavaNextConfig
from transformers.models.llava_next.modeling_llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextModel,
    LlavaNextMultiModalProjector,
    LlavaNextPreTrainedModel,
    image_size_to_num_patches,
)

from .attention_kinds import SparsePreTrainedMixin
from .class_attention import ClassAttentionMixin, class_attention_of, llava_class_blocks
from .configuration_sparse_llava_next import (
    TEXT_TYPES,
    SparseLlavaNextConfig,
    image_grids,
    num_tiles,
    picture_size,
    tile_grid,
    vision_macs,
)
from .host_memory import to_device, to_host
from .planned_model import PlannedModelMixin
from .processing_sparse_llava_next import SparseLlavaNextProcessor
from .sparse_multimodal import (
    SparseMultimodalMixin,
    embedded,
    read_prompt,
    with_features,
)
from .sparse_text import LAYER_CLASS_NAMES, sparse_decoder
from .user_error import UserError
from .visual_layout import Grid, Images


def visual_rows(image: Sequence[Grid]) -> torch.Tensor:
    """Returns which rows of a picture in a prompt are visual tokens, [rows] bool. The others are newlines.

    Args:
        image: the picture's two grids.
    """
    (rows, columns), (unpadded_rows, unpadded_columns) = image
    lines = torch.ones(unpadded_rows, unpadded_columns + 1, dtype=torch.bool)
    lines[:, -1] = False
    return torch.cat([torch.ones(rows * columns, dtype=torch.bool), lines.flatten()])


class SparseLlavaNextPreTrainedModel(SparsePreTrainedMixin, LlavaNextPreTrainedModel):
    config: SparseLlavaNextConfig
    config_class = SparseLlavaNextConfig
    _no_split_modules = LAYER_CLASS_NAMES


class SparseLlavaNextModel(PlannedModelMixin, ClassAttentionMixin, SparseLlavaNextPreTrainedModel, LlavaNextModel):
    tower_blocks = staticmethod(llava_class_blocks)

    def __init__(self, config: SparseLlavaNextConfig):
        # Not LlavaNextModel's constructor, which would build a dense decoder for nothing.
        LlavaNextPreTrainedModel.__init__(self, config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = LlavaNextMultiModalProjector(config)
        self.image_newline = nn.Parameter(torch.empty(config.text_config.hidden_size))
        self.language_model = sparse_decoder(config.text_config)
        self.post_init()
        self.put_config_plan_in_force()

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        image_sizes: torch.Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        tower_layers: int | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Returns LLaVA-NeXT's features, with the class token's attention in the last `tower_layers` layers.

        Each tile has its own class token. At newlines the attention is 0. If `tower_layers` is None, they are as many
        as the plan in force asks for.
        """
        (image_sizes,) = to_host(image_sizes)  # the stock class waits for each value that it reads of them

        def to_pictures(attention: torch.Tensor) -> list[torch.Tensor]:
            pinpoints, side = self.config.image_grid_pinpoints, self.config.vision_config.image_size
            counts = [image_size_to_num_patches(size, pinpoints, side) for size in image_sizes.tolist()]
            pictures, newline = attention.split(counts), attention.new_zeros(attention.shape[2])
            return self.pack_image_features(
                pictures, image_sizes, vision_feature_select_strategy, image_newline=newline
            )[0]

        encode = partial(
            super().get_image_features,
            pixel_values,
            image_sizes,
            vision_feature_select_strategy=vision_feature_select_strategy,
            **kwargs,
        )
        return self.scored_features(encode, to_pictures, vision_feature_layer, tower_layers)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        mm_encoder_outputs: dict | None = None,
        supervised: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Runs LLaVA-NeXT's forward, and tells the decoder where visual tokens are and which grids each picture has.

        Raises:
            UserError: pictures without sizes, sizes that do not fit the features, or image tokens without pictures.
        """
        features, embedding = dict(mm_encoder_outputs or {}), self.get_input_embeddings()
        kinds, attention_mask, kwargs["supervised"], image_sizes = read_prompt(
            (self.config.image_token_id,),
            input_ids,
            inputs_embeds,
            embedding,
            pixel_values is not None or bool(features),
            attention_mask,
            supervised,
            image_sizes,
        )
        embeddings = embedded(input_ids, inputs_embeds, embedding)
        if pixel_values is not None:
            if image_sizes is None:
                raise UserError("image_sizes: got none; they tell which tiles pixel_values hold")
            features["image"] = self.get_image_features(
                pixel_values,
                image_sizes,
                vision_feature_layer=vision_feature_layer,
                vision_feature_select_strategy=vision_feature_select_strategy,
            )
        if kinds is not None:
            pictures = features["image"].pooler_output
            rows, images = torch.cat(tuple(pictures)), self._images(pictures, image_sizes)
            is_visual = torch.cat([visual_rows(image) for image in images])
            if len(is_visual) != len(rows):
                raise UserError(
                    f"image_sizes: got those of pictures of {len(is_visual)} tokens, the features are {len(rows)}"
                )
            # Put in place here: LLaVA-NeXT's own forward waits for the device to count image tokens.
            embeddings = with_features(embeddings, kinds > 0, rows)
            kwargs["visual_mask"] = (kinds > 0).masked_scatter(kinds > 0, is_visual)
            kwargs["images"] = images
            class_attention = class_attention_of(features["image"])
            if class_attention is not None:
                chosen = to_device(is_visual.nonzero().squeeze(1), class_attention.device)
                kwargs["class_attention"] = class_attention[chosen]
        return super().forward(attention_mask=attention_mask, inputs_embeds=embeddings, **kwargs)

    def _images(self, pictures: Sequence[torch.Tensor], image_sizes: torch.Tensor | None) -> Images:
        """Returns the grids of pictures.

        Without sizes, which generation drops, they follow from the newlines among the features, of which one is last. A
        picture that is too thin has none, and is whole alone.

        Args:
            pictures: each one's features [N, D].
            image_sizes: [pictures, 2] long, each one's height and width, on the host, or None.
        """
        if image_sizes is not None:
            return tuple(image_grids(self.config, *size) for size in image_sizes.tolist())
        whole, images = tile_grid(self.config), []
        # Not this model's newline, as an assistant is given the features of the model that it assists.
        newlines = to_host(*((picture == picture[-1]).all(-1) for picture in pictures))
        for picture, is_newline in zip(pictures, newlines, strict=True):
            num_cut = len(picture) - whole[0] * whole[1]
            is_newline = is_newline if num_cut > 0 else torch.zeros_like(is_newline)
            rows = int(is_newline.sum())
            image = (whole, (rows, max(0, num_cut // rows - 1) if rows else 0))
            if not torch.equal(visual_rows(image), ~is_newline):
                raise UserError("image_sizes: got none, and the features are not those of one picture each")
            images.append(image)
        return tuple(images)


class SparseLlavaNextForConditionalGeneration(
    SparseMultimodalMixin, SparseLlavaNextPreTrainedModel, LlavaNextForConditionalGeneration
):
    stock_class = LlavaNextForConditionalGeneration
    processor_class = SparseLlavaNextProcessor
    model_class = SparseLlavaNextModel
    text_types = TEXT_TYPES
    image_grids = staticmethod(image_grids)
    vision_macs = staticmethod(vision_macs)
    visual_rows = staticmethod(visual_rows)

    def __init__(self, config: SparseLlavaNextConfig):
        LlavaNextPreTrainedModel.__init__(self, config)
        self.build()

    @staticmethod
    def random_pictures(config: LlavaNextConfig, images: Images, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Returns random inputs of the forward for pictures that become these grids."""
        tower = config.vision_config
        tiles = max(num_tiles(config, image) for image in images)
        size = (len(images), tiles, tower.num_channels, tower.image_size, tower.image_size)
        sizes = torch.tensor([picture_size(config, image) for image in images])
        return {"pixel_values": torch.randn(size, generator=generator), "image_sizes": sizes}

    def encode_pictures(self, pictures: dict[str, torch.Tensor], *, for_every_plan: bool = False) -> dict[str, object]:
        """Returns the features of pictures, and their sizes."""
        rest = {name: value for name, value in pictures.items() if name != "pixel_values"}
        return {**super().encode_pictures(pictures, for_every_plan=for_every_plan), **rest}

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.LongTensor | None = None,
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
        """Runs LLaVA-NeXT's forward. See `SparseMultimodalMixin.sparse_forward` for `labels` and `logits_mask`."""
        return self.sparse_forward(
            super().forward,
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
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


__all__ = ["SparseLlavaNextForConditionalGeneration", "SparseLlavaNextModel", "SparseLlavaNextPreTrainedModel"]
