"""Qwen2-VL with a sparse text decoder. It has the same weights under the same names, and runs under a visual plan.

A picture has one grid, whose size follows the picture's. A video has one grid for each pair of frames. Positions have
three dimensions. Whatever a plan carries, they stay those of the whole prompt.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import (
    Qwen2VisionTransformerPretrainedModel,
    Qwen2VLDecoderLayer,
    Qwen2VLForConditionalGeneration,
    Qwen2VLModel,
    Qwen2VLPreTrainedModel,
    Qwen2VLRotaryEmbedding,
    Qwen2VLTextModel,
)
from transformers.utils import can_return_tuple

from .attention_kinds import SparsePreTrainedMixin
from .class_attention import TowerBlock
from .configuration_sparse_qwen2_vl import (
    SparseQwen2VLConfig,
    SparseQwen2VLTextConfig,
    image_grids,
    vision_macs,
)
from .host_memory import to_device
from .planned_model import PlannedModelMixin
from .processing_sparse_qwen2_vl import SparseQwen2VLProcessor
from .qwen2_vl_positions import (
    images_of_positions,
    images_of_sizes,
    next_position,
    prompt_positions,
    required_sizes,
)
from .rotary_embedding import rotary_embedding
from .sparse_decoder import CosineAndSine, SparseDecoderMixin
from .sparse_layer import SparseDecoderLayerMixin
from .sparse_multimodal import (
    SparseMultimodalMixin,
    embedded,
    read_prompt,
    with_features,
)
from .user_error import UserError
from .visual_cache import first_layer
from .visual_layout import Images


class SparseQwen2VLDecoderLayer(SparseDecoderLayerMixin, Qwen2VLDecoderLayer):
    pass


class SparseQwen2VLPreTrainedModel(SparsePreTrainedMixin, Qwen2VLPreTrainedModel):
    config: SparseQwen2VLConfig
    config_class = SparseQwen2VLConfig
    _no_split_modules: ClassVar[list[str]] = ["SparseQwen2VLDecoderLayer", "Qwen2VLVisionBlock"]


class SparseQwen2VLTextModel(SparseDecoderMixin, SparseQwen2VLPreTrainedModel, Qwen2VLTextModel):
    config: SparseQwen2VLTextConfig
    config_class = SparseQwen2VLTextConfig

    def __init__(self, config: SparseQwen2VLTextConfig):
        if "sliding_attention" in config.layer_types:
            raise UserError("use_sliding_window: got true, allowed: false (every text row sees the whole prompt)")
        # Not Qwen2VLTextModel's constructor, which would build dense layers for nothing.
        Qwen2VLPreTrainedModel.__init__(self, config)
        self.build(SparseQwen2VLDecoderLayer, Qwen2VLRotaryEmbedding(config=config))

    def rope(self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor | None, past_length: int) -> CosineAndSine:
        """Returns cosine and sine [B, S, head_dim] for inputs_embeds [B, S, D].

        Args:
            position_ids: [B, S] for text alone, or [3, B, S] with time, row and column, or [4, B, S] with those of text
                before these. None means that rows are counted from `past_length` on.
        """
        if position_ids is None:
            batch, length, _ = inputs_embeds.shape
            position_ids = torch.arange(past_length, past_length + length, device=inputs_embeds.device).expand(
                batch, -1
            )
        if position_ids.dim() == 2:
            position_ids = position_ids.expand(3, -1, -1)
        return rotary_embedding(self.rotary_emb, inputs_embeds, position_ids[-3:])


class SparseQwen2VLModel(PlannedModelMixin, SparseQwen2VLPreTrainedModel, Qwen2VLModel):
    def __init__(self, config: SparseQwen2VLConfig):
        # Not Qwen2VLModel's constructor, which would build a dense decoder for nothing.
        Qwen2VLPreTrainedModel.__init__(self, config)
        self.visual = Qwen2VisionTransformerPretrainedModel._from_config(config.vision_config)
        self.language_model = SparseQwen2VLTextModel._from_config(config.text_config)
        self.rope_deltas = None
        self.post_init()
        self.put_config_plan_in_force()

    @property
    def visual_tokens(self) -> tuple[int, int]:
        """The image token and the video token."""
        return self.config.image_token_id, self.config.video_token_id

    def class_blocks(self) -> list[TowerBlock]:
        """Returns no blocks, because the tower has no class token."""
        return []

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        video_grid_thw: torch.LongTensor | None = None,
        mm_token_type_ids: torch.IntTensor | None = None,
        mm_encoder_outputs: dict | None = None,
        supervised: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Runs Qwen2-VL's forward, and tells the decoder where visual tokens are and which grids pictures and videos
        have.

        Positions that are not given are counted on from those of the cache. `mm_token_type_ids` are not read, as the
        tokens tell them.

        Raises:
            UserError: image or video tokens without pictures or videos, pictures or videos without sizes, or positions
                that put them on no grid.
        """
        features, embedding = dict(mm_encoder_outputs or {}), self.get_input_embeddings()
        has_pictures = bool(features) or pixel_values is not None or pixel_values_videos is not None
        kinds, mask, kwargs["supervised"], image_sizes, video_sizes, places = read_prompt(
            self.visual_tokens,
            input_ids,
            inputs_embeds,
            embedding,
            has_pictures,
            attention_mask,
            supervised,
            image_grid_thw,
            video_grid_thw,
            position_ids,
        )
        embeddings = embedded(input_ids, inputs_embeds, embedding)
        if pixel_values is not None:
            features["image"] = self.get_image_features(pixel_values, required_sizes("image_grid_thw", image_grid_thw))
        if pixel_values_videos is not None:
            features["video"] = self.get_video_features(
                pixel_values_videos, required_sizes("video_grid_thw", video_grid_thw)
            )
        first = first_layer(past_key_values)
        if kinds is not None:
            sizes = (image_sizes, video_sizes)
            if places is None:
                places = prompt_positions(self.get_rope_index, kinds, mask, sizes)
                position_ids = to_device(places, embeddings.device) + next_position(first)
            kwargs["visual_mask"] = kinds > 0
            if places.dim() == 3:
                kwargs["images"] = images_of_positions(kinds, places)
            else:
                kwargs["images"] = images_of_sizes(kinds, sizes, self.config.vision_config.spatial_merge_size)
            for kind, output in features.items():
                is_visual = kinds == 1 + ("image", "video").index(kind)
                embeddings = with_features(embeddings, is_visual, torch.cat(tuple(output.pooler_output)))
        elif position_ids is None and first is not None:
            batch, length, _ = embeddings.shape
            counted = torch.arange(length, device=embeddings.device).expand(3, batch, -1)
            position_ids = counted + next_position(first)
        outputs = super().forward(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            return_dict=True,
            **kwargs,
        )
        first = first_layer(outputs.past_key_values)
        if first is not None and position_ids is not None:
            given = position_ids[-3:] if position_ids.dim() == 3 else position_ids[None]
            first.position_offset = given.amax((0, 2)).expand(embeddings.shape[0]).unsqueeze(1) + 1 - first.num_seen
        return outputs


class SparseQwen2VLForConditionalGeneration(
    SparseMultimodalMixin, SparseQwen2VLPreTrainedModel, Qwen2VLForConditionalGeneration
):
    stock_class = Qwen2VLForConditionalGeneration
    processor_class = SparseQwen2VLProcessor
    model_class = SparseQwen2VLModel
    text_types = ("qwen2_vl_text",)
    image_grids = staticmethod(image_grids)
    vision_macs = staticmethod(vision_macs)

    if TYPE_CHECKING:  # attributes of the stock model
        model: SparseQwen2VLModel
        get_image_features: Callable[..., BaseModelOutputWithPooling]
        get_video_features: Callable[..., BaseModelOutputWithPooling]
        get_input_embeddings: Callable[[], nn.Embedding]

    def __init__(self, config: SparseQwen2VLConfig):
        Qwen2VLPreTrainedModel.__init__(self, config)
        self.build()

    @staticmethod
    def random_pictures(config: Qwen2VLConfig, images: Images, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Returns random inputs of the forward for pictures that become these grids."""
        tower = config.vision_config
        merge = tower.spatial_merge_size
        thw = [[len(image), image[0][0] * merge, image[0][1] * merge] for image in images]
        patches = sum(time * height * width for time, height, width in thw)
        values = tower.in_channels * tower.temporal_patch_size * tower.patch_size**2
        return {"pixel_values": torch.randn(patches, values, generator=generator), "image_grid_thw": torch.tensor(thw)}

    @staticmethod
    def stock_inputs(config: Qwen2VLConfig, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the types of tokens [B, S], by which the stock class counts positions."""
        return {
            "mm_token_type_ids": (input_ids == config.image_token_id).int()
            + 2 * (input_ids == config.video_token_id).int()
        }

    @property
    def vision_tower(self) -> nn.Module:
        return self.get_submodule("model.visual")

    @staticmethod
    def visual_tokens(config: Qwen2VLConfig) -> dict[str, int]:
        """Returns the image token and the video token."""
        return {"image": config.image_token_id, "video": config.video_token_id}

    def encode_pictures(self, pictures: dict[str, torch.Tensor], *, for_every_plan: bool = False) -> dict[str, object]:
        """Returns the features of pictures and videos, and their sizes. The tower has no class token to rank by."""
        outputs = {}
        rest: dict[str, object] = {
            name: value for name, value in pictures.items() if not name.startswith("pixel_values")
        }
        if "pixel_values" in pictures:
            outputs["image"] = self.get_image_features(pictures["pixel_values"], pictures["image_grid_thw"])
        if "pixel_values_videos" in pictures:
            outputs["video"] = self.get_video_features(pictures["pixel_values_videos"], pictures["video_grid_thw"])
        return {"mm_encoder_outputs": outputs, **rest} if outputs else rest

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        video_grid_thw: torch.LongTensor | None = None,
        mm_token_type_ids: torch.IntTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        logits_mask: torch.Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Runs Qwen2-VL's forward. See `SparseMultimodalMixin.sparse_forward` for `labels` and `logits_mask`."""
        return self.sparse_forward(
            super().forward,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            mm_token_type_ids=mm_token_type_ids,
            labels=labels,
            logits_to_keep=logits_to_keep,
            logits_mask=logits_mask,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]
    ) -> torch.Tensor:
        """Returns the positions [4, B, cached + S] of a prompt: slots, then time, row and column.

        They are counted on from those of the cache, whose rows the prompt may hold again. Those of cached rows are 0,
        and padding after a prompt has the last position, so that generation goes on from there.

        Raises:
            UserError: there are more or fewer pictures or videos than places for them after the cached rows.
        """
        ids, mask = model_kwargs.get("input_ids"), model_kwargs.get("attention_mask")
        if ids is None or ids.shape[1] == 0:
            ids = None if inputs_tensor.is_floating_point() else inputs_tensor
        first = first_layer(model_kwargs.get("past_key_values"))
        num_cached = 0 if first is None else first.num_seen
        prompt = inputs_tensor if ids is None else ids
        holds_cached = mask is None or mask.shape[1] == prompt.shape[1]
        new = prompt[:, num_cached:] if holds_cached else prompt
        batch, length = new.shape[:2]
        kinds, mask, image_sizes, video_sizes = read_prompt(
            self.model.visual_tokens,
            None if ids is None else new,
            new if ids is None else None,
            self.get_input_embeddings(),
            True,
            mask,
            model_kwargs.get("image_grid_thw"),
            model_kwargs.get("video_grid_thw"),
        )
        assert kinds is not None, "read_prompt was told of pictures"
        places = prompt_positions(self.model.get_rope_index, kinds, mask, (image_sizes, video_sizes))
        if mask is not None:
            last = torch.where(mask[:, -length:].bool(), torch.arange(length), -1).amax(1, keepdim=True)
            places = torch.where(torch.arange(length) > last, places.amax((0, 2)).unsqueeze(1), places)
        positions = to_device(places, new.device) + next_position(first)
        slots = torch.arange(num_cached + length, device=new.device).expand(1, batch, -1)
        return torch.cat([slots, F.pad(positions, (num_cached, 0))])


__all__ = ["SparseQwen2VLForConditionalGeneration", "SparseQwen2VLModel", "SparseQwen2VLPreTrainedModel"]
