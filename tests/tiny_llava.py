"""A stock LLaVA with small random weights, whose answers differ."""

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, ProcessorMixin


def tiny_llava(processor: ProcessorMixin) -> LlavaForConditionalGeneration:
    """Returns the same model at every call. Weights are large, so that answers are long and withstand rounding."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        text_config=LlamaConfig(**sizes, vocab_size=len(processor.tokenizer), initializer_range=0.6),
        vision_config=CLIPVisionConfig(**sizes, image_size=24, patch_size=8, initializer_range=0.6),
        image_token_id=processor.image_token_id,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config).eval()
