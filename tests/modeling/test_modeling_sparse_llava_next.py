"""LLaVA-NeXT's own: grids of pictures of any size, newlines that are text, features that come without sizes."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import (
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    SiglipVisionConfig,
)

from checkpoints.build import build_student
from data.collator import Collator, pictures_of
from data.conversations import encode
from data.sample import Sample
from modeling import visual_masks
from modeling.configuration_sparse_llava_next import image_grids, num_tiles, picture_size
from modeling.modeling_sparse_llava_next import SparseLlavaNextForConditionalGeneration, visual_rows
from modeling.visual_plan import VisualPlan
from tests.families.family import as_batch, batch_of, relative_error, text_rows
from tests.families.llava_next import IMAGE, LLAVA_NEXT, PATCH, TILE, config
from tests.tiny_processor import TINY_TEMPLATE, tiny_processor
from training.measure.clock.benchmark import stock_twin

LAYERS = 3
SIZES = [(80, 130), (130, 80), (336, 672), (1000, 100), (100, 1000), (333, 500), (511, 1006), (997, 1003), (24, 24)]
BLIND = VisualPlan.dense(LAYERS).replace(0, tokens=0.0).replace(1, tokens=0.0).replace(2, tokens=0.0)


@pytest.fixture
def model() -> SparseLlavaNextForConditionalGeneration:
    return LLAVA_NEXT[0].sparse()


@pytest.fixture(scope="module")
def processor() -> LlavaNextProcessor:
    own = config("llama")
    return LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": TILE},
            crop_size={"height": TILE, "width": TILE},
            image_grid_pinpoints=own.image_grid_pinpoints,
        ),
        tiny_processor().tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TINY_TEMPLATE,
    )


@pytest.mark.parametrize("size", SIZES)
def test_grids_fill_the_tokens_that_the_processor_counts(processor, size):
    released = LlavaNextConfig()
    tile = released.vision_config.image_size
    for own, pixels, patch in ((config("llama"), TILE, PATCH), (released, tile, released.vision_config.patch_size)):
        processor.patch_size, processor.image_processor.image_grid_pinpoints = patch, own.image_grid_pinpoints
        inputs = {"image_sizes": torch.tensor([size]), "pixel_values": torch.zeros(1, 1, 3, pixels, pixels)}
        expected = processor.replace_image_token(inputs, 0).count(processor.image_token)
        grids = image_grids(own, *size)
        assert len(visual_rows(grids)) == expected
        assert image_grids(own, *picture_size(own, grids)) == grids


def test_released_tiles_are_counted():
    """As LLaVA-NeXT was released, a square has 2880 tokens at most: one tile of 336 pixels and four more."""
    own = LlavaNextConfig()
    assert image_grids(own, 672, 672) == ((24, 24), (48, 48)) and num_tiles(own, image_grids(own, 672, 672)) == 5
    assert image_grids(own, 500, 1500) == ((24, 24), (24, 72)) and num_tiles(own, image_grids(own, 500, 1500)) == 4
    assert image_grids(own, 480, 640) == ((24, 24), (36, 48)) and num_tiles(own, image_grids(own, 480, 640)) == 5


def test_files_become_the_stock_models_logits(processor, tmp_path):
    """From pictures on disk, through the stock processor and the collator, to both models."""
    processor.patch_size, processor.image_processor.image_grid_pinpoints = PATCH, config("llama").image_grid_pinpoints
    samples = []
    for name, sizes in {"one": [(80, 130)], "two": [(90, 20), (50, 130)]}.items():
        paths = tuple(tmp_path / f"{name}-{place}.png" for place in range(len(sizes)))
        for path, (height, width) in zip(paths, sizes, strict=True):
            generator = torch.Generator().manual_seed(height)
            noise = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(noise.numpy()).save(path)
        samples.append(Sample(name, paths, (("<image> " * len(sizes) + "red ?", "yes"),)))
    encoded = [encode(sample, processor, 200) for sample in samples]
    batch = Collator(processor)(encoded)
    assert [sample["pixel_values"].shape[1] for sample in encoded] == [5, 4] and batch["pixel_values"].shape[:2] == (
        3,
        5,
    )
    own = config("llama")
    own.image_token_id = processor.image_token_id
    torch.manual_seed(0)
    dense = LlavaNextForConditionalGeneration(own).eval()
    text = batch["attention_mask"].bool() & (batch["input_ids"] != processor.image_token_id)
    with torch.no_grad():
        expected = dense(**batch).logits[text]
        found = build_student(dense, VisualPlan.dense(LAYERS))(**batch).logits[text]
    assert relative_error(found, expected) < 1e-5


def test_newlines_are_text(model):
    """Without a single visual token the newlines stay, and are read."""
    batch = as_batch(LLAVA_NEXT[0].samples(0)[1])
    rows = text_rows(model, batch)
    with torch.no_grad(), model.use_plan(BLIND):
        before = model(**batch).logits[rows]
        others = model(**{**batch, "pixel_values": torch.rand_like(batch["pixel_values"])}).logits[rows]
        assert torch.equal(before, others)
        model.model.image_newline.add_(1.0)
        assert relative_error(model(**batch).logits[rows], before) > 1e-2


def test_features_of_one_picture_each_need_no_sizes(model):
    """As generation gives them; the newlines in them tell the grids."""
    batch = batch_of(LLAVA_NEXT[0].samples(0))
    plan = VisualPlan.dense(LAYERS).replace(0, radius=1)
    with torch.no_grad(), model.use_plan(plan):
        expected = model(**batch).logits
        text = {name: batch[name] for name in ("input_ids", "attention_mask")}
        encoded = model.encode_pictures(pictures_of(batch))
        assert torch.equal(model(**text, **encoded).logits, expected)
        del encoded["image_sizes"]
        assert torch.equal(model(**text, **encoded).logits, expected)
        output = encoded["mm_encoder_outputs"]["image"]
        output.pooler_output = [torch.cat(output.pooler_output)]
        with pytest.raises(
            ValueError, match="image_sizes: got none, and the features are not those of one picture each"
        ):
            model(**text, **encoded)


def test_embeddings_in_place_of_ids(model):
    batch = batch_of(LLAVA_NEXT[0].samples(0))
    ids = batch.pop("input_ids")
    with torch.no_grad():
        expected = model(input_ids=ids, **batch).logits
        assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(ids), **batch).logits, expected)


@pytest.mark.parametrize("size", [(400, 3), (2, 400)])
def test_a_picture_too_thin_to_be_seen(model, size):
    """A strip may lose all columns or all rows to its proportions. Newlines are left, or the whole picture alone."""
    if size[0] < size[1]:
        model.config.image_grid_pinpoints = [[2 * TILE, 2 * TILE]]
    image = image_grids(model.config, *size)
    assert 0 in image[1]
    ids = torch.tensor([[5, *[IMAGE] * len(visual_rows(image)), 6, 7]])
    pixels = torch.randn(1, 5, 3, TILE, TILE)
    inputs = {"input_ids": ids, "pixel_values": pixels, "image_sizes": torch.tensor([size])}
    with torch.no_grad():
        assert relative_error(model(**inputs).logits[:, -2:], stock_twin(model)(**inputs).logits[:, -2:]) < 1e-5
        encoded = model.encode_pictures(pictures_of(inputs))
        expected = model(**inputs).logits
        assert torch.equal(model(input_ids=ids, mm_encoder_outputs=encoded["mm_encoder_outputs"]).logits, expected)


def test_a_tower_without_class_token_and_two_layers_read():
    own = config("qwen2")
    own.vision_config = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=TILE,
        patch_size=PATCH,
    )
    own.vision_feature_select_strategy, own.vision_feature_layer = "full", [-3, -1]
    torch.manual_seed(0)
    dense = LlavaNextForConditionalGeneration(own).eval()
    batch = batch_of(LLAVA_NEXT[2].samples(0))
    with torch.no_grad():
        expected = dense(**batch).logits
        sparse = build_student(dense, VisualPlan.dense(LAYERS))
        rows = text_rows(sparse, batch)
        assert relative_error(sparse(**batch).logits[rows], expected[rows]) < 1e-5


def test_tiles_of_neighbour_attention_meet_the_newlines_before_them(monkeypatch):
    """A grid large enough for tiles to pay, against the same mask over one product."""
    own = config("llama")
    own.vision_config.image_size, own.image_grid_pinpoints = 16 * PATCH, [[32 * PATCH, 32 * PATCH]]
    torch.manual_seed(0)
    dense = LlavaNextForConditionalGeneration(own).eval()
    model = build_student(dense, VisualPlan.dense(LAYERS).replace(0, radius=1).replace(1, radius=1, read=False))
    image = image_grids(own, 640, 480)
    ids = torch.tensor([[5, *[IMAGE] * len(visual_rows(image)), 6, 7]])
    pictures = SparseLlavaNextForConditionalGeneration.random_pictures(own, (image,), torch.Generator().manual_seed(0))
    taken = []
    pays = visual_masks.tiles_pay
    monkeypatch.setattr(visual_masks, "tiles_pay", lambda *sizes: taken.append(pays(*sizes)) or taken[-1])
    with torch.no_grad():
        tiled = model(input_ids=ids, **pictures).logits[:, -2:]
        assert any(taken)
        monkeypatch.setattr(visual_masks, "tiles_pay", lambda *sizes: False)
        masked = model(input_ids=ids, **pictures).logits[:, -2:]
    assert relative_error(tiled, masked) < 1e-5


def test_what_cannot_be_done_is_refused(model):
    batch = as_batch(LLAVA_NEXT[0].samples(0)[1])
    with pytest.raises(ValueError, match="no pictures were given"):
        model(input_ids=batch["input_ids"])
    with pytest.raises(ValueError, match="image_sizes: got none; they tell which tiles"):
        model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"])
    encoded = model.encode_pictures(pictures_of(batch))
    with pytest.raises(ValueError, match="image_sizes: got those of pictures of 39 tokens, the features are 37"):
        model(**{**batch, "pixel_values": None, **encoded, "image_sizes": torch.tensor([[130, 80]])})
    with pytest.raises(ValueError, match="image tokens"):
        model(**{**batch, "input_ids": batch["input_ids"][:, :-6], "attention_mask": batch["attention_mask"][:, :-6]})
    for tower, strategy in (("clip_vision_model", "full"), ("siglip_vision_model", "default")):
        own = SimpleNamespace(vision_config=SimpleNamespace(model_type=tower), vision_feature_select_strategy=strategy)
        with pytest.raises(
            ValueError, match=f"vision_feature_select_strategy: got '{strategy}', allowed with a '{tower}'"
        ):
            image_grids(own, 10, 10)
