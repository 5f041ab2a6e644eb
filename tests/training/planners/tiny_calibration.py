"""Random statistics of a small model, for planners that need no evaluation."""

from types import SimpleNamespace

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from training.measure.calibration import Calibration
from training.planners.tools.search import Search

NUM_LAYERS, NUM_UNITS, NUM_NEURONS, GRID_SIDE, NUM_SAMPLES = 8, 4, 64, 5, 6


def tiny_config() -> LlavaConfig:
    return LlavaConfig(
        text_config=LlamaConfig(
            hidden_size=32,
            intermediate_size=NUM_NEURONS,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=NUM_UNITS,
            num_key_value_heads=NUM_UNITS,
        ),
        vision_config=CLIPVisionConfig(image_size=8 * GRID_SIDE, patch_size=8),
    )


def tiny_calibration(
    seed: int = 0, num_layers: int = NUM_LAYERS, num_units: int = NUM_UNITS, num_neurons: int = NUM_NEURONS
) -> Calibration:
    generator = torch.Generator().manual_seed(seed)
    return Calibration(
        activity=torch.rand(NUM_SAMPLES, num_layers, num_units, generator=generator),
        neuron_importance=torch.rand(num_layers, num_neurons, generator=generator),
        neighborhood=torch.rand(num_layers, GRID_SIDE, generator=generator).cumsum(1) / GRID_SIDE,
        unit_kl=torch.rand(num_layers, num_units, generator=generator),
    )


def tiny_search(config: LlavaConfig, calibration: Calibration) -> Search:
    """A search for a planner that looks at the model's config alone, not at its weights."""
    return Search(SimpleNamespace(config=config), [], calibration)
