"""Qwen2-VL with a sparse text decoder. It has the same weights under the same names, and runs under a visual plan.

A picture has one grid, whose size follows the picture's. A video has one grid for each pair of frames. Positions have
three dimensions. Whatever a plan carries, they stay those of the whole prompt.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
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

from .class_attention import TowerBlock
from .configuration_sparse_qwen2_vl import (
    SparseQwen2VLConfig,
    SparseQwen2VLTextConfig,
    image_grids,
    vision_macs,
)
from .host_memory import to_device
from .processing_sparse_qwen2_vl import SparseQwen2VLProcessor
from .sparse_decoder import CosineAndSine, SparseDecoderMixin
from .sparse_layer import SparseDecoderLayerMixin
from .sparse_multimodal import (
    SparseMultimodalMixin,
    SparsePreTrainedMixin,
    embedded,
    read_prompt,
    visual_runs,
    with_features,
)
from .user_error import UserError
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
        return self.rotary_emb(inputs_embeds, position_ids[-3:])


class SparseQwen2VLModel(SparseQwen2VLPreTrainedModel, Qwen2VLModel):
    def __init__(self, config: SparseQwen2VLConfig):
        # Not Qwen2VLModel's constructor, which would build a dense decoder for nothing.
        Qwen2VLPreTrainedModel.__init__(self, config)
        self.visual = Qwen2VisionTransformerPretrainedModel._from_config(config.vision_config)
        self.language_model = SparseQwen2VLTextModel._from_config(config.text_config)
        self.rope_deltas = None
        self.post_init()

    @property
    def visual_tokens(self) -> tuple[int, int]:
        """The image token and the video token."""
        return self.config.image_token_id, self.config.video_token_id

    def class_blocks(self) -> list[TowerBlock]:
        """Returns no blocks, because the tower has no class token."""
        return []

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

        Raises:
            UserError: image or video tokens without pictures or videos, or positions that put them on no grid.
        """
        features, embedding = dict(mm_encoder_outputs or {}), self.get_input_embeddings()
        has_pictures = bool(features) or pixel_values is not None or pixel_values_videos is not None
        kinds, mask, kwargs["supervised"], image_sizes, video_sizes, token_types, places = read_prompt(
            self.visual_tokens,
            input_ids,
            inputs_embeds,
            embedding,
            has_pictures,
            attention_mask,
            supervised,
            image_grid_thw,
            video_grid_thw,
            mm_token_type_ids,
            position_ids,
        )
        embeddings = embedded(input_ids, inputs_embeds, embedding)
        if pixel_values is not None:
            sizes = None if image_grid_thw is None else to_device(image_grid_thw, pixel_values.device)
            features["image"] = self.get_image_features(pixel_values, sizes)
        if pixel_values_videos is not None:
            sizes = None if video_grid_thw is None else to_device(video_grid_thw, pixel_values_videos.device)
            features["video"] = self.get_video_features(pixel_values_videos, sizes)
        if position_ids is None:
            cached = 0 if past_key_values is None else past_key_values.get_seq_length()
            if cached == 0:
                self.rope_deltas = None  # those of an earlier prompt have no say in this one's positions
            begins = kinds is not None and self.rope_deltas is None
            places = self.compute_3d_position_ids(
                input_ids=kinds if begins else input_ids,  # positions depend on the kinds of tokens alone
                image_grid_thw=image_sizes,
                video_grid_thw=video_sizes,
                inputs_embeds=embeddings,
                # Positions that are counted anew are counted on the host. Otherwise those of the prompt are continued.
                attention_mask=mask if begins else attention_mask,
                past_key_values=past_key_values,
                mm_token_type_ids=kinds if token_types is None else token_types,
            )
            position_ids = None if places is None else to_device(places, embeddings.device)
            if self.rope_deltas is not None:
                self.rope_deltas = to_device(self.rope_deltas, embeddings.device)
        if kinds is not None:
            kwargs["visual_mask"] = kinds > 0
            kwargs["images"] = _images(kinds, places)
            for kind, output in features.items():
                is_visual = kinds == 1 + ("image", "video").index(kind)
                embeddings = with_features(embeddings, is_visual, torch.cat(tuple(output.pooler_output)))
        return super().forward(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )


def _images(kinds: torch.Tensor, position_ids: torch.Tensor | None) -> Images:
    """Returns the grids of pictures and videos in the order of the batch. They follow from positions.

    Sizes are not asked for, because generation does not pass them.

    Args:
        kinds: [B, S], 0 at text, 1 at image and 2 at video tokens. A run of these is one picture or video.
        position_ids: [3 or 4, B, S], of which the last three are time, row and column.

    Both lie on the host.
    """
    if position_ids is None or position_ids.dim() != 3:
        raise UserError("position_ids: got none with rows and columns; give image_grid_thw and video_grid_thw")
    sample, begin, end = visual_runs(kinds)
    # From the first token of a picture to its last, rows and columns both grow from their least to their greatest.
    heights, widths = position_ids[-2:, sample, end - 1] - position_ids[-2:, sample, begin] + 1
    images = []
    for height, width, length in torch.stack([heights, widths, end - begin], dim=1).tolist():
        if height < 1 or width < 1 or length % (height * width):
            raise UserError(
                f"image tokens: got {length} in a row, position_ids place them on a grid of {(height, width)}"
            )
        images.append(((height, width),) * (length // (height * width)))
    return tuple(images)


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

    def encode_pictures(self, pictures: dict[str, torch.Tensor]) -> dict[str, object]:
        """Returns the features of pictures and videos, and their sizes."""
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

    def _prepare_position_ids_for_generation(self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]) -> Any:
        """Adds `mm_token_type_ids`. Without them the stock class silently counts visual tokens as text."""
        if model_kwargs.get("mm_token_type_ids") is None and inputs_tensor.dim() == 2:
            model_kwargs = {**model_kwargs, **self.stock_inputs(self.config, inputs_tensor)}
        return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)


__all__ = ["SparseQwen2VLForConditionalGeneration", "SparseQwen2VLModel", "SparseQwen2VLPreTrainedModel"]
