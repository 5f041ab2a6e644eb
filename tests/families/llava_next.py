"""Tiny LLaVA-NeXTs, one per text model. Their tiles are cut to the picture's proportions, with newlines after rows."""

from functools import partial

import torch
from torch import nn
from transformers import LlavaNextConfig, LlavaNextImageProcessorPil, LlavaNextProcessor

from tests.families.family import DECODER, TinyFamily, sample_of, template_with, tiny_tokenizer, words
from tests.modeling.masked_reference import Layout, class_rows

IMAGE, TILE, PATCH = 3, 6, 2
SIDE = TILE // PATCH
PINPOINTS = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE], [TILE, 3 * TILE]]
TILES = {(80, 130): (2, 2), (130, 80): (2, 2), (50, 130): (1, 3)}
"""Of pictures of (height, width) pixels, how many tiles they take, down and across."""


def config(text_type: str) -> LlavaNextConfig:
    return LlavaNextConfig(
        text_config={
            "model_type": text_type,
            **DECODER,
            "head_dim": 8,
            "sliding_window": None,
        },
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": TILE,
            "patch_size": PATCH,
        },
        image_token_id=IMAGE,
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=SIDE**2,
        vision_feature_layer=-1,  # costs are counted up to the layer that is read; the stock tower runs to its end
    )


def shown(size: tuple[int, int]) -> tuple[range, range]:
    """Rows and columns of the tiles' grid that show the picture: it is scaled to fit and stands in the middle."""
    (height, width), (down, across) = size, TILES[size]
    rows, columns = down * SIDE, across * SIDE
    above = left = 0
    if width * rows > height * columns:
        above = (rows - height * columns // width) // 2
    else:
        left = (columns - width * rows // height) // 2
    return range(above, rows - above), range(left, columns - left)


def samples(seed: int) -> list[dict]:
    """No picture; a wide one; a high one of five tiles and a wide one of four, the whole picture counted."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for sizes in ([], [(80, 130)], [(130, 80), (50, 130)]):
        ids = words(2, IMAGE + 1, generator)
        for size in sizes:
            rows, columns = shown(size)
            ids += [IMAGE] * (SIDE**2 + len(rows) * (len(columns) + 1)) + words(1 + len(made), IMAGE + 1, generator)
        ids += words(3, IMAGE + 1, generator)
        sample = sample_of(ids)
        if sizes:
            counts = [1 + TILES[size][0] * TILES[size][1] for size in sizes]
            sample["pixel_values"] = torch.randn(len(sizes), max(counts), 3, TILE, TILE, generator=generator)
            for picture, count in zip(sample["pixel_values"], counts, strict=True):
                picture[count:] = 0
            sample["image_sizes"] = torch.tensor(sizes)
        made.append(sample)
    return made


def layout(model: nn.Module, sample: dict) -> Layout:
    """As "spatial_unpad" of LLaVA-NeXT's released code has it, token by token."""
    ids = sample["input_ids"][0]
    decoder = model.model.language_model
    states = list(decoder.embed_tokens(ids))
    image, grid = torch.full_like(ids, -1), torch.full_like(ids, -1)
    places = torch.zeros(len(ids), 2, dtype=torch.long)
    class_attention = torch.zeros(len(ids), len(model.vision_tower.encoder.layers))
    row = iter(torch.where(ids == IMAGE)[0].tolist())

    def put(feature: torch.Tensor, of_class: torch.Tensor, of_image: int, of_grid: int, place: tuple[int, int]) -> None:
        at = next(row)
        states[at], image[at], grid[at], places[at] = feature, of_image, of_grid, torch.tensor(place)
        class_attention[at] = of_class

    for number, size in enumerate(map(tuple, sample["image_sizes"].tolist()) if "image_sizes" in sample else ()):
        features = model.model.vision_tower(sample["pixel_values"][number], output_hidden_states=True).hidden_states[-1]
        whole, *tiles = model.model.multi_modal_projector(features)[:, 1:]  # without the class token
        of_whole, *of_tiles = class_rows(model.vision_tower, sample["pixel_values"][number])
        for place in range(SIDE**2):
            put(whole[place], of_whole[place], number, 2 * number, divmod(place, SIDE))
        rows, columns = shown(size)
        for down in rows:
            for across in columns:
                tile, place = down // SIDE * TILES[size][1] + across // SIDE, down % SIDE * SIDE + across % SIDE
                put(tiles[tile][place], of_tiles[tile][place], number, 2 * number + 1, (down, across))
            states[next(row)] = model.model.image_newline
    states = torch.stack(states)
    cos, sin = decoder.rotary_emb(states[None], torch.arange(len(ids))[None])
    return Layout(states, (cos[0], sin[0]), image, grid, places, class_attention)


def processor() -> LlavaNextProcessor:
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer=tiny_tokenizer(["<image>"]),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template_with("<image>"),
    )


LLAVA_NEXT = [
    TinyFamily(f"llava_next_{text}", partial(config, text), samples, layout, dict, processor)
    for text in ("llama", "mistral", "qwen2")
]
