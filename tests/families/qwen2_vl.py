"""A tiny Qwen2-VL: grouped queries, biases, three-dimensional positions, pictures of several sizes, a video."""

import torch
from torch import nn
from transformers import Qwen2VLConfig, Qwen2VLImageProcessorPil, Qwen2VLProcessor

from checkpoints.processor import without_videos
from tests.families.family import DECODER, TinyFamily, sample_of, template_with, tiny_tokenizer, words
from tests.modeling.masked_reference import Layout

IMAGE, VIDEO, START, END = 3, 4, 5, 6
PATCH, MERGE, TIME = 14, 2, 2
TEXTS = "{% for part in message['content'] if part['type'] == 'text' %}"
VIDEOS = (
    "{% for part in message['content'] if part['type'] == 'video' %}"
    "{{ '<|vision_start|><|video_pad|><|vision_end|>' }}{% endfor %}"
)
"""In the chat template, the beginning of what shows the texts of a message, and what shows its videos."""


def config() -> Qwen2VLConfig:
    return Qwen2VLConfig(
        text_config={
            **DECODER,
            "max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 2,
            "embed_dim": 16,
            "hidden_size": 32,
            "mlp_ratio": 2,
            "num_heads": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TIME,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )


def samples(seed: int) -> list[dict]:
    """No picture; a picture and a video of two frames; two pictures of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for visual in ([], [("image", 1, 3, 2), ("video", 2, 2, 2)], [("image", 1, 2, 3), ("image", 1, 1, 4)]):
        sample, ids = {}, words(2, END + 1, generator)
        for kind, time, rows, columns in visual:
            size = torch.tensor([[time, rows * MERGE, columns * MERGE]])
            pixels = torch.randn(int(size.prod()), 3 * TIME * PATCH**2, generator=generator)
            names = ("pixel_values", "image_grid_thw") if kind == "image" else ("pixel_values_videos", "video_grid_thw")
            for name, value in zip(names, (pixels, size), strict=True):
                sample[name] = torch.cat([sample[name], value]) if name in sample else value
            ids += [START] + [IMAGE if kind == "image" else VIDEO] * (time * rows * columns) + [END]
            ids += words(1 + len(made), END + 1, generator)
        ids += words(3, END + 1, generator)
        made.append({**sample_of(ids), **sample})
    return made


def layout(model: nn.Module, sample: dict) -> Layout:
    """Positions are as in the Qwen2-VL paper (arXiv 2409.12191, section 2.1). Text counts on from the largest."""
    ids = sample["input_ids"][0]
    states = model.model.language_model.embed_tokens(ids)
    sizes = {}
    for token, pixels, size, encode in (
        (IMAGE, "pixel_values", "image_grid_thw", model.model.get_image_features),
        (VIDEO, "pixel_values_videos", "video_grid_thw", model.model.get_video_features),
    ):
        sizes[token] = sample.get(size, torch.zeros(0, 3, dtype=torch.long)).tolist()
        if pixels in sample:
            features = torch.cat(list(encode(sample[pixels], sample[size]).pooler_output))
            states = states.masked_scatter((ids == token)[:, None], features)
    image, grid = torch.full_like(ids, -1), torch.full_like(ids, -1)
    places, positions = torch.zeros(len(ids), 2, dtype=torch.long), torch.zeros(3, len(ids), dtype=torch.long)
    row, position, num_images, num_grids = 0, 0, 0, 0
    while row < len(ids):
        token = int(ids[row])
        if token not in (IMAGE, VIDEO):
            positions[:, row] = position
            row, position = row + 1, position + 1
            continue
        frames, height, width = sizes[token].pop(0)
        for frame in range(frames):
            for down in range(height // MERGE):
                for across in range(width // MERGE):
                    image[row], grid[row] = num_images, num_grids
                    places[row] = torch.tensor([down, across])
                    positions[:, row] = position + torch.tensor([frame, down, across])
                    row += 1
            num_grids += 1
        num_images += 1
        position += max(height, width) // MERGE  # of time nothing is counted, as in the released code
    cos, sin = model.model.language_model.rotary_emb(states[None], positions[:, None])
    return Layout(states, (cos[0], sin[0]), image, grid, places)


def stock_inputs(batch: dict) -> dict:
    ids = batch["input_ids"]
    return {**batch, "mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}


def processor() -> Qwen2VLProcessor:
    tower = {"patch_size": PATCH, "temporal_patch_size": TIME, "merge_size": MERGE}
    sides = {"shortest_edge": (PATCH * MERGE) ** 2, "longest_edge": (64 * PATCH * MERGE) ** 2}
    made = without_videos(Qwen2VLProcessor)(
        image_processor=Qwen2VLImageProcessorPil(**tower, size=sides),
        tokenizer=tiny_tokenizer(["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]),
        chat_template=template_with("<|vision_start|><|image_pad|><|vision_end|>").replace(TEXTS, VIDEOS + TEXTS),
    )
    made.video_processor = {"video_processor_type": "Qwen2VLVideoProcessor", **tower}
    return made


QWEN2_VL = TinyFamily("qwen2_vl", config, samples, layout, stock_inputs, processor)
