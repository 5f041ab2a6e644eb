"""Tiny LLaVA-1.5s, one per text model it may have."""

from functools import partial

import torch
from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaProcessor

from tests.families.family import DECODER, TinyFamily, sample_of, template_with, tiny_tokenizer, words
from tests.modeling.masked_reference import llava_layout

IMAGE, SIZE, PATCH = 3, 24, 8
TOWERS = {
    "clip_vision_model": {"intermediate_size": 24},
    "dinov2": {"mlp_ratio": 2, "use_mask_token": False},
}
"""What a tower's sizes are, beside those that all have."""


def config(text_type: str, tower_type: str) -> LlavaConfig:
    return LlavaConfig(
        text_config={
            "model_type": text_type,
            **DECODER,
            "head_dim": 8,
            "sliding_window": None,
        },
        vision_config={
            "model_type": tower_type,
            **TOWERS[tower_type],
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": SIZE,
            "patch_size": PATCH,
        },
        image_token_id=IMAGE,
        image_seq_length=(SIZE // PATCH) ** 2,
        vision_feature_layer=-1,  # costs are counted up to the layer that is read; the stock tower runs to its end
    )


def samples(seed: int) -> list[dict]:
    """No picture, one, and two."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for num_pictures in range(3):
        ids = words(2, IMAGE + 1, generator)
        for _ in range(num_pictures):
            ids += [IMAGE] * (SIZE // PATCH) ** 2 + words(1 + num_pictures, IMAGE + 1, generator)
        ids += words(3, IMAGE + 1, generator)
        sample = sample_of(ids)
        if num_pictures:
            sample["pixel_values"] = torch.randn(num_pictures, 3, SIZE, SIZE, generator=generator)
        made.append(sample)
    return made


def processor() -> LlavaProcessor:
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}),
        tokenizer=tiny_tokenizer(["<image>"]),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template_with("<image>"),
    )


LLAVA = [
    TinyFamily(f"llava_{text}", partial(config, text, tower), samples, llava_layout, dict, processor)
    for text, tower in (("llama", "clip_vision_model"), ("mistral", "clip_vision_model"), ("qwen2", "dinov2"))
]
DINOV2 = LLAVA[-1]
