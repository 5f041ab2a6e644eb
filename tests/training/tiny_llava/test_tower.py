"""The dense objective of the tower: it falls, and it asks for the words' own embeddings."""

import random

import pytest
import torch

from data.shapes.patches import GROUPS, NO_WORD
from data.shapes.scenes import sample_scene
from training.recipe.dense import TinyLlavaSettings
from training.tiny_llava.model import build_model, build_processor
from training.tiny_llava.tower import PatchDataset, PatchReader

SETTINGS = TinyLlavaSettings(
    image_size=96,
    patch_size=16,
    tower_hidden_size=32,
    tower_intermediate_size=64,
    tower_layers=1,
    hidden_size=96,
    intermediate_size=32,
    layers=1,
)


@pytest.fixture
def setting():
    torch.manual_seed(0)
    processor = build_processor(SETTINGS, [f"{word.strip()}" for words in GROUPS.values() for word in words])
    model = build_model(SETTINGS, processor, 128)
    scenes = [sample_scene(random.Random(seed), "train", 1, 4) for seed in range(16)]
    items = [PatchDataset(scenes, processor)[index] for index in range(len(scenes))]
    return model, processor, {key: torch.stack([item[key] for item in items]) for key in items[0]}


def test_the_loss_falls_and_words_stay_as_they_are(setting):
    model, processor, batch = setting
    words = model.get_input_embeddings().weight.clone()
    reader = PatchReader(model, processor)
    optimizer = torch.optim.AdamW(reader.parameters(), 3e-3)
    losses = []
    for _ in range(20):
        loss = reader(**batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]
    assert torch.equal(words, model.get_input_embeddings().weight)


def test_the_sum_of_the_embeddings_is_what_is_asked_for(setting):
    """A projector that puts out each patch's sum of embeddings tells every word right; one that is off does not."""
    model, processor, batch = setting
    reader = PatchReader(model, processor)
    perfect = sum(
        reader.get_buffer(name)[batch["words"][..., group].clamp(min=0)] * (batch["words"][..., [group]] != NO_WORD)
        for group, name in enumerate(GROUPS)
    )

    class Answers(torch.nn.Module):
        def __init__(self, answer):
            super().__init__()
            self.answer = answer

        def forward(self, features):
            return self.answer

    reader.projector = Answers(perfect)
    right = reader(**batch)
    assert (right["right"] == 1).all() and right["loss"] < 0.1
    reader.projector = Answers(perfect.roll(1, dims=1))
    assert reader(**batch)["loss"] > 10 * right["loss"]
