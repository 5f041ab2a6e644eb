"""Qwen2-VL with a sparse text decoder: the same weights under the same names, executed under a visual plan.

Pictures have grids of their own size, a video has one grid per pair of frames. Positions are three-dimensional and stay those
of the whole prompt, whatever a plan carries.
"""

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast
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
from .sparse_decoder import SparseDecoderMixin
from .sparse_layer import SparseDecoderLayerMixin
from .sparse_multimodal import (
    SparseMultimodalMixin,
    SparsePreTrainedMixin,
    placeholders,
    refuse_missing_pictures,
    visual_runs,
)
from .user_error import UserError
from .visual_layout import Images


class SparseQwen2VLDecoderLayer(SparseDecoderLayerMixin, Qwen2VLDecoderLayer):
    pass


class SparseQwen2VLPreTrainedModel(SparsePreTrainedMixin, Qwen2VLPreTrainedModel):
    config: SparseQwen2VLConfig
    config_class = SparseQwen2VLConfig
    _no_split_modules = ["SparseQwen2VLDecoderLayer", "Qwen2VLVisionBlock"]


class SparseQwen2VLTextModel(SparseDecoderMixin, SparseQwen2VLPreTrainedModel, Qwen2VLTextModel):
    config: SparseQwen2VLTextConfig
    config_class = SparseQwen2VLTextConfig

    def __init__(self, config):
        if "sliding_attention" in config.layer_types:
            raise UserError("use_sliding_window: got true, allowed: false (every text row sees the whole prompt)")
        Qwen2VLPreTrainedModel.__init__(self, config)  # not Qwen2VLTextModel's: its layers would be built for nothing
        self.build(SparseQwen2VLDecoderLayer, Qwen2VLRotaryEmbedding(config=config))

    def rope(
        self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor | None, past_length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As the base class, for position_ids [B, S] of text, [3, B, S] (time, row, column), or [4, B, S] with text's first."""
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
        Qwen2VLPreTrainedModel.__init__(
            self, config
        )  # not Qwen2VLModel's: its dense decoder would be built for nothing
        self.visual = Qwen2VisionTransformerPretrainedModel._from_config(config.vision_config)
        self.language_model = SparseQwen2VLTextModel._from_config(config.text_config)
        self.rope_deltas = None
        self.post_init()

    @property
    def visual_tokens(self) -> tuple[int, int]:
        """Those of images and of videos."""
        return self.config.image_token_id, self.config.video_token_id

    def class_blocks(self) -> list[TowerBlock]:
        """None: the tower has no class token."""
        return []

    def kinds(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None = None) -> torch.Tensor:
        """[B, S] int: 0 at text, 1 at image and 2 at video tokens; the stock class's `mm_token_type_ids`."""
        embedding = self.get_input_embeddings()
        of_token = [placeholders((token,), input_ids, inputs_embeds, embedding).int() for token in self.visual_tokens]
        return of_token[0] + 2 * of_token[1]

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        video_grid_thw: torch.LongTensor | None = None,
        mm_token_type_ids: torch.IntTensor | None = None,
        mm_encoder_outputs: dict | None = None,
        **kwargs,
    ):
        """Qwen2-VL's forward, telling the decoder where visual tokens are and which grids each picture or video has."""
        embeddings = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        features = {} if mm_encoder_outputs is None else dict(mm_encoder_outputs)
        if pixel_values is not None:
            features["image"] = self.get_image_features(pixel_values, image_grid_thw)
        if pixel_values_videos is not None:
            features["video"] = self.get_video_features(pixel_values_videos, video_grid_thw)
        kinds = None
        if features:
            kinds = self.kinds(input_ids, inputs_embeds)
        else:
            refuse_missing_pictures(input_ids, self.visual_tokens)
        if position_ids is None:
            position_ids = self.compute_3d_position_ids(
                input_ids=kinds.long()
                if input_ids is None and kinds is not None
                else input_ids,  # positions depend on kinds alone
                image_grid_thw=image_grid_thw,
                video_grid_thw=video_grid_thw,
                inputs_embeds=embeddings,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                mm_token_type_ids=kinds if mm_token_type_ids is None else mm_token_type_ids,
            )
        if kinds is not None:
            kwargs["visual_mask"] = kinds > 0
            kwargs["images"] = _images(kinds, position_ids)
        # Put in place here: Qwen2-VL's own forward takes encoded images only in newer transformers.
        filled = embeddings
        for kind, output in features.items():
            rows = torch.cat(tuple(output.pooler_output)).to(embeddings)
            masks = self.get_placeholder_mask(input_ids, inputs_embeds=embeddings, **{f"{kind}_features": rows})
            filled = filled.masked_scatter(masks[("image", "video").index(kind)], rows)
        return super().forward(
            inputs_embeds=filled,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )


def _images(kinds: torch.Tensor, position_ids: torch.Tensor | None) -> Images:
    """Grids of pictures and videos in the order of the batch, from where they lie: generation passes no sizes.

    Args:
        kinds: [B, S], 0 at text, 1 at image and 2 at video tokens; one run of these is one picture or video.
        position_ids: [3 or 4, B, S], the last three are time, row and column.
    """
    if position_ids is None or position_ids.dim() != 3:
        raise UserError("position_ids: got none with rows and columns; give image_grid_thw and video_grid_thw")
    rows, columns = position_ids[-2:].cpu()
    images = []
    for sample, begin, end in visual_runs(kinds):
        places = (rows[sample, begin:end], columns[sample, begin:end])
        grid = tuple(int(place.max() - place.min()) + 1 for place in places)
        frames, rest = divmod(end - begin, grid[0] * grid[1])
        if rest:
            raise UserError(f"image tokens: got {end - begin} in a row, position_ids place them on a grid of {grid}")
        images.append((grid,) * frames)
    return tuple(images)


class SparseQwen2VLForConditionalGeneration(
    SparseMultimodalMixin, SparseQwen2VLPreTrainedModel, Qwen2VLForConditionalGeneration
):
    stock_class = Qwen2VLForConditionalGeneration
    text_types = ("qwen2_vl_text",)
    image_grids = staticmethod(image_grids)
    vision_macs = staticmethod(vision_macs)

    def __init__(self, config: SparseQwen2VLConfig):
        Qwen2VLPreTrainedModel.__init__(self, config)
        self.build(SparseQwen2VLModel(config))

    @staticmethod
    def random_pictures(config: Qwen2VLConfig, images: Images, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """What the model takes of pictures that become these images; for benchmarks."""
        tower = config.vision_config
        merge = tower.spatial_merge_size
        thw = [[len(image), image[0][0] * merge, image[0][1] * merge] for image in images]
        patches = sum(time * height * width for time, height, width in thw)
        values = tower.in_channels * tower.temporal_patch_size * tower.patch_size**2
        return {"pixel_values": torch.randn(patches, values, generator=generator), "image_grid_thw": torch.tensor(thw)}

    @staticmethod
    def stock_inputs(config: Qwen2VLConfig, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """By the kinds of its tokens the stock class counts positions."""
        return {
            "mm_token_type_ids": (input_ids == config.image_token_id).int()
            + 2 * (input_ids == config.video_token_id).int()
        }

    @property
    def vision_tower(self) -> nn.Module:
        return self.model.visual

    @staticmethod
    def visual_tokens(config: Qwen2VLConfig) -> dict[str, int]:
        return {"image": config.image_token_id, "video": config.video_token_id}

    def encode_pictures(self, pictures: dict[str, torch.Tensor]) -> dict:
        outputs = {}
        rest = {name: value for name, value in pictures.items() if not name.startswith("pixel_values")}
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
        past_key_values=None,
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
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Qwen2-VL's forward; `labels` and `logits_mask` as in `SparseMultimodalMixin.serve`."""
        return self.serve(
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

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        """Without `mm_token_type_ids` the stock class counts visual tokens as text, and says nothing."""
        if model_kwargs.get("mm_token_type_ids") is None and inputs_tensor.dim() == 2:
            model_kwargs = {**model_kwargs, "mm_token_type_ids": self.model.kinds(inputs_tensor)}
        return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)


__all__ = ["SparseQwen2VLForConditionalGeneration", "SparseQwen2VLModel", "SparseQwen2VLPreTrainedModel"]
