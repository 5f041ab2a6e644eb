"""The shipped teacher: stock transformers loads it, it is small, and it answers from the picture."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from data.shapes.world import SplitSettings, WorldSettings, write_world
from data.sources.reading import load_samples
from data.sources.source import Source
from training.evaluation.asking import evaluate
from training.evaluation.questions import asked_of

TEACHER = Path(__file__).resolve().parents[2] / "checkpoints" / "tiny-llava"


@pytest.fixture(scope="module")
def teacher():
    return LlavaForConditionalGeneration.from_pretrained(TEACHER, dtype=torch.float32).eval()


def test_it_is_what_it_is_said_to_be(teacher):
    weights = TEACHER / "model.safetensors"
    assert weights.stat().st_size <= 10_000_000
    auto = AutoModelForImageTextToText.from_pretrained(TEACHER)
    assert type(auto) is LlavaForConditionalGeneration and auto.dtype == torch.bfloat16
    text, vision = teacher.config.text_config, teacher.config.vision_config
    assert text.num_hidden_layers >= 8 and text.num_key_value_heads == text.num_attention_heads >= 4
    assert (vision.image_size // vision.patch_size) ** 2 >= 144


def test_it_answers_held_out_questions_and_needs_the_picture(teacher, tmp_path):
    """A few questions of the test part; the whole table is in its README."""
    world = WorldSettings(seed=7, splits={"test": SplitSettings(part="test", rows=36)})
    path = write_world(tmp_path, world)["test"]
    samples, _ = load_samples(Source(path=path, images=path.parent))
    processor = AutoProcessor.from_pretrained(TEACHER)
    seen = evaluate(teacher, processor, [asked_of(samples)], batch_size=12)
    wrong = [(record.question, record.answer, record.prediction) for record in seen.records if record.score < 1]
    assert seen.accuracy >= 0.9, wrong
    assert evaluate(teacher, processor, [asked_of(samples)], batch_size=12, pixel_transform="grey").accuracy <= 0.5
