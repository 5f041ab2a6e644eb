"""A dense LLaVA of a few thousand weights, random in every parameter, with a processor to match."""

from pathlib import Path

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from tests.tiny_processor import tiny_processor

NUM_LAYERS, NUM_UNITS, INTERMEDIATE_SIZE = 3, 2, 64


def tiny_dense(
    num_units: int = NUM_UNITS, biases: bool = True, tied: bool = False
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """3 layers of 4 heads in `num_units` key/value groups, 9 visual tokens a picture, fp32, in eval mode."""
    processor = tiny_processor(image_size=24, patch_size=8)
    processor.num_additional_image_tokens, processor.vision_feature_select_strategy = 1, "default"
    config = LlavaConfig(
        text_config={
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": INTERMEDIATE_SIZE,
            "num_hidden_layers": NUM_LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": num_units,
            "vocab_size": len(processor.tokenizer),
            "attention_bias": biases,
            "mlp_bias": biases,
            "tie_word_embeddings": tied,
        },
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 24,
            "patch_size": 8,
        },
        image_token_index=processor.image_token_id,
        image_seq_length=9,
        vision_feature_select_strategy="default",
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for (
            parameter
        ) in model.parameters():  # biases too, which are zero by default, and weights large enough to matter
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model, processor


def save_tiny_dense(folder: Path, biases: bool = True) -> Path:
    """A dense checkpoint: the model and its processor in `folder`, which is returned."""
    for part in tiny_dense(biases=biases):
        part.save_pretrained(folder)
    return folder


def tiny_batch(processor: LlavaProcessor) -> dict[str, torch.Tensor]:
    """Two samples, one picture each, the second with two more words and the first left padded."""
    torch.manual_seed(1)
    text = ["<image> what shape ?", "<image> what colour is the circle ?"]
    pictures = [torch.randint(0, 255, (3, 24, 24), dtype=torch.uint8) for _ in text]
    return dict(processor(images=pictures, text=text, padding=True, padding_side="left", return_tensors="pt"))
