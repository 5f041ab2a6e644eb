"""LLaVA with a sparse text decoder: the same weights under the same names, executed under a visual plan."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import AutoModel
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.models.llava.modeling_llava import (
    LlavaCausalLMOutputWithPast,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaModelOutputWithPast,
    LlavaMultiModalProjector,
    LlavaPreTrainedModel,
)

from .configuration_sparse_llava import SparseLlavaConfig, image_grid
from .sparse_decoder import SparseDecoderMixin
from .sparse_layer import ReusingRMSNorm, SparseDecoderLayerMixin, make_narrow
from .visual_plan import VisualPlan


class SparseLlamaDecoderLayer(SparseDecoderLayerMixin, LlamaDecoderLayer):
    def __init__(self, config, layer_idx: int):
        super().__init__(config, layer_idx)
        make_narrow(self)
        self.input_layernorm = ReusingRMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class SparseLlamaModel(SparseDecoderMixin, LlamaModel):
    _no_split_modules = ["SparseLlamaDecoderLayer"]

    def __init__(self, config):
        LlamaPreTrainedModel.__init__(self, config)  # not LlamaModel's: its layers would be built for nothing
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList([SparseLlamaDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.set_visual_plan(VisualPlan.dense(config.num_hidden_layers))
        self.post_init()


class SparseLlavaPreTrainedModel(LlavaPreTrainedModel):
    config: SparseLlavaConfig
    config_class = SparseLlavaConfig
    _no_split_modules = ["SparseLlamaDecoderLayer"]
    _supports_flash_attn = False  # masks tell which visual tokens a text row sees
    _supports_flex_attn = False
    _supports_attention_backend = False
    _can_compile_fullgraph = False


class SparseLlavaModel(SparseLlavaPreTrainedModel, LlavaModel):
    def __init__(self, config: SparseLlavaConfig):
        LlavaPreTrainedModel.__init__(self, config)  # not LlavaModel's: its dense decoder would be built for nothing
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = LlavaMultiModalProjector(config)
        self.language_model = SparseLlamaModel(config.text_config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
        **kwargs,
    ) -> LlavaModelOutputWithPast:
        """LLaVA's forward, telling the decoder where image tokens are and which grid each image has."""
        encoded = None if mm_encoder_outputs is None else mm_encoder_outputs.get("image")
        num_images = 0 if pixel_values is None else pixel_values.shape[0]
        if encoded is not None:
            num_images = len(encoded.pooler_output)
        if num_images > 0:
            kwargs["visual_mask"] = self._image_tokens(input_ids, inputs_embeds)
            kwargs["image_grids"] = (image_grid(self.config),) * num_images
        elif input_ids is not None and input_ids.shape[1] > 1 and bool((input_ids == self.config.image_token_id).any()):
            raise ValueError("input_ids hold image tokens, but no pixel_values were given")
        if encoded is not None:
            # Put in place here: LLaVA's own forward takes encoded images only in newer transformers.
            embeddings = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
            features = torch.cat(tuple(encoded.pooler_output)).to(embeddings)
            mask = self.get_placeholder_mask(input_ids, inputs_embeds=embeddings, image_features=features)
            input_ids, inputs_embeds = None, embeddings.masked_scatter(mask, features)
        return super().forward(input_ids=input_ids, pixel_values=pixel_values, inputs_embeds=inputs_embeds, **kwargs)

    def _image_tokens(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """[B, S] bool: the placeholders that image features replace."""
        if input_ids is not None:
            return input_ids == self.config.image_token_id
        token = torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(token)).all(-1)


class SparseLlavaForConditionalGeneration(SparseLlavaPreTrainedModel, LlavaForConditionalGeneration):
    """A LLaVA whose visual tokens are served as its plan says.

    Logits at image tokens are those of a zero state: nothing reads them, so their last states are never computed.
    """

    def __init__(self, config: SparseLlavaConfig):
        LlavaPreTrainedModel.__init__(self, config)
        self.model = SparseLlavaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        if config.visual_plan is not None:
            self.model.language_model.set_visual_plan(VisualPlan.from_dict(config.visual_plan))
        self.post_init()

    @property
    def visual_plan(self) -> VisualPlan:
        """The plan in force."""
        return self.model.language_model.visual_plan

    def set_visual_plan(self, plan: VisualPlan) -> None:
        """Puts `plan` in force and writes it to the config. Raises ValueError when it does not fit the model."""
        self.model.language_model.set_visual_plan(plan)
        self.config.visual_plan = plan.to_dict()

    @contextmanager
    def use_plan(self, plan: VisualPlan) -> Iterator[None]:
        """`plan` in force inside the block; the config keeps the model's own."""
        with self.model.language_model.use_plan(plan):
            yield

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        logits_mask: torch.Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
        **kwargs,
    ) -> LlavaCausalLMOutputWithPast:
        """LLaVA's forward.

        Args:
            labels: [B, S], -100 where unsupervised; they also tell which rows rank visual tokens in training.
            logits_mask: [B, S] bool; logits are then [rows, vocab], of the true rows alone, in row-major order.
        """
        inputs = {
            "input_ids": input_ids,
            "pixel_values": pixel_values,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            **kwargs,
        }
        if mm_encoder_outputs is not None:
            inputs["mm_encoder_outputs"] = mm_encoder_outputs
        if labels is not None:
            inputs["supervised"] = labels != -100
        if logits_mask is None:
            return super().forward(labels=labels, logits_to_keep=logits_to_keep, **inputs)
        outputs = self.model(**inputs)
        return LlavaCausalLMOutputWithPast(
            logits=self.lm_head(outputs.last_hidden_state[logits_mask]),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            image_hidden_states=outputs.image_hidden_states,
        )


__all__ = ["SparseLlavaForConditionalGeneration", "SparseLlavaModel", "SparseLlavaPreTrainedModel"]
