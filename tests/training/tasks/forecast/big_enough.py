"""A LLaVA that is small, but whose logits, neurons and tokens are what takes memory, as in a real one; and samples."""

from dataclasses import replace

import torch
from transformers import CLIPVisionConfig, LlamaConfig

from modeling.configuration_sparse_llava import SparseLlavaConfig
from modeling.modeling_sparse_llava import SparseLlavaForConditionalGeneration
from modeling.visual_flops import DecoderShape
from modeling.visual_plan import VisualPlan
from training.recipe.file import load_recipe
from training.recipe.student import SparsifyRecipe
from training.tasks.forecast.assumptions import Assumptions
from training.tasks.forecast.sizes import Sizes, sizes_of

SIDE, TEXT, IMAGE, VOCABULARY = 12, 56, 3, 3000
LENGTH = SIDE**2 + TEXT
SHAPE = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4}


def model() -> SparseLlavaForConditionalGeneration:
    """It has the dense plan, fp32 weights, and is in eval mode."""
    torch.manual_seed(0)
    text = LlamaConfig(**SHAPE, num_key_value_heads=2, vocab_size=VOCABULARY)
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                              image_size=SIDE * 4, patch_size=4)  # fmt: skip
    config = SparseLlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE,
        image_seq_length=SIDE**2,
        visual_plan=VisualPlan.dense(SHAPE["num_hidden_layers"]).to_dict(),
    )
    return SparseLlavaForConditionalGeneration(config).eval()


def batch(samples: int) -> dict:
    """Every text token that has one before it is supervised, as a forecast assumes."""
    ids = torch.randint(4, VOCABULARY, (samples, LENGTH), generator=torch.Generator().manual_seed(0))
    ids[:, : SIDE**2] = IMAGE
    labels = ids.masked_fill(ids == IMAGE, -100)
    pixels = torch.randn(samples, 3, SIDE * 4, SIDE * 4, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": pixels}


def recipe(*overrides: str) -> SparsifyRecipe:
    return load_recipe("debug", [f"data.max_length={LENGTH}", *overrides])


def sizes(of: SparsifyRecipe, student: torch.nn.Module) -> Sizes:
    """The sizes of the recipe with this student of the model above."""
    config = getattr(student, "get_base_model", lambda: student)().config
    found = sizes_of(of, config, student, Assumptions(text_tokens=TEXT))
    assert found.decoder == DecoderShape.from_config(config.text_config)
    return replace(found, visual_tokens=SIDE**2)
