"""Tiny LLaVA-1.5s, one per text model it may have."""

from functools import partial

import torch
from transformers import LlavaConfig

from tests.families.family import TinyFamily
from tests.modeling.masked_reference import llava_layout

IMAGE, VOCAB_SIZE, SIZE, PATCH = 3, 60, 24, 8


def config(text_type: str) -> LlavaConfig:
    return LlavaConfig(
        text_config={
            "model_type": text_type,
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "initializer_range": 0.3,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "sliding_window": None,
        },
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 24,
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
        ids = _text(2, generator)
        for _ in range(num_pictures):
            ids += [IMAGE] * (SIZE // PATCH) ** 2 + _text(1 + num_pictures, generator)
        ids += _text(3, generator)
        sample = {"input_ids": torch.tensor(ids)}
        if num_pictures:
            sample["pixel_values"] = torch.randn(num_pictures, 3, SIZE, SIZE, generator=generator)
        sample["labels"] = torch.where(torch.arange(len(ids)) < len(ids) - 2, -100, sample["input_ids"])
        made.append(sample)
    return made


def _text(length: int, generator: torch.Generator) -> list[int]:
    return torch.randint(IMAGE + 1, VOCAB_SIZE, (length,), generator=generator).tolist()


LLAVA = [
    TinyFamily(f"llava_{text}", partial(config, text), samples, llava_layout, dict) for text in ("llama", "mistral", "qwen2")
]
