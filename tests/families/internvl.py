"""Tiny InternVLs, one per text model of the released sizes: pictures of one tile, and of two and a thumbnail."""

from functools import partial

import torch
from torch import nn
from transformers import GotOcr2ImageProcessorPil, InternVLConfig, InternVLProcessor

from checkpoints.processor import without_videos
from tests.families.family import DECODER, TinyFamily, sample_of, template_with, tiny_tokenizer, words
from tests.modeling.masked_reference import Layout, class_rows

IMAGE, START, END = 3, 4, 5
TILE, SIDE = 16, 2  # 16 pixels, 4 patches, 2 tokens a side
TEXTS = {
    "llama": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
    "phi3": {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.5, 2.0, 2.5, 3.0],
            "original_max_position_embeddings": 128,
        },
        "max_position_embeddings": 256,
    },
    "qwen2": {},
}


def config(text_type: str) -> InternVLConfig:
    return InternVLConfig(
        text_config={
            "model_type": text_type,
            **DECODER,
            "max_position_embeddings": 64,
            **TEXTS[text_type],
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [TILE, TILE],
            "patch_size": [4, 4],
        },
        image_token_id=IMAGE,
        image_seq_length=SIDE**2,
        tie_word_embeddings=False,
    )


def samples(seed: int) -> list[dict]:
    """No picture; one of a single tile; one of three tiles and one of a single tile."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for tiles in ([], [1], [3, 1]):
        ids = words(2, END + 1, generator)
        for count in tiles:
            ids += [START] + [IMAGE] * (SIDE**2 * count) + [END] + words(1 + len(made), END + 1, generator)
        ids += words(3, END + 1, generator)
        sample = sample_of(ids)
        if tiles:
            sample["pixel_values"] = torch.randn(sum(tiles), 3, TILE, TILE, generator=generator)
        made.append(sample)
    return made


def layout(model: nn.Module, sample: dict) -> Layout:
    ids = sample["input_ids"][0]
    decoder = model.model.language_model
    states = decoder.embed_tokens(ids)
    image, grid = torch.full_like(ids, -1), torch.full_like(ids, -1)
    places = torch.zeros(len(ids), 2, dtype=torch.long)
    class_attention = torch.zeros(len(ids), len(model.vision_tower.encoder.layer))
    if "pixel_values" in sample:
        of_patches = class_rows(model.vision_tower, sample["pixel_values"]).unflatten(1, (2 * SIDE, 2 * SIDE))
        features = model.model.get_image_features(sample["pixel_values"]).pooler_output.flatten(0, 1)
        states = states.masked_scatter((ids == IMAGE)[:, None], features)
    num_images, place = -1, 0
    for row, token in enumerate(ids.tolist()):
        num_images += token == START
        if token == IMAGE:
            image[row], grid[row] = num_images, place // SIDE**2
            down, across = divmod(place % SIDE**2, SIDE)
            places[row] = torch.tensor([down, across])
            merged = of_patches[place // SIDE**2, 2 * down : 2 * down + 2, 2 * across : 2 * across + 2]
            class_attention[row] = merged.mean((0, 1))
            place += 1
    cos, sin = decoder.rotary_emb(states[None], torch.arange(len(ids))[None])
    return Layout(states, (cos[0], sin[0]), image, grid, places, class_attention)


def processor() -> InternVLProcessor:
    tokens = {
        "context_image_token": "<IMG_CONTEXT>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "video_token": "<video>",
    }
    made = without_videos(InternVLProcessor)(
        image_processor=GotOcr2ImageProcessorPil(size={"height": TILE, "width": TILE}, max_patches=12),
        tokenizer=tiny_tokenizer(tokens),
        image_seq_length=SIDE**2,
        chat_template=template_with("<IMG_CONTEXT>"),
    )
    made.video_processor = {"video_processor_type": "InternVLVideoProcessor", "size": {"height": TILE, "width": TILE}}
    return made


INTERNVL = [TinyFamily(f"internvl_{text}", partial(config, text), samples, layout, dict, processor) for text in TEXTS]
