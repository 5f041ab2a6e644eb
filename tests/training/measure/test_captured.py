"""A call as a CUDA graph computes what the call does."""

import pytest
import torch

from modeling.layer_plan import LayerPlan
from modeling.visual_plan import VisualPlan
from training.measure.clock.captured import CapturedCall
from training.measure.clock.prompt import Prompt
from training.measure.clock.shapes import random_model, shape_of_sizes

PLAN = VisualPlan(
    layers=(
        LayerPlan(radius=2, bidirectional=True, heads=(0, 2)),
        LayerPlan(attend=False, ffn=0, heads=3),
        LayerPlan(tokens=0.0),
    )
)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.inference_mode()
def test_a_graph_computes_what_the_call_does():
    model = random_model(shape_of_sizes(256, 3, 576), PLAN, torch.float32, "cuda")
    prompt = Prompt.random(model, 2, 64)
    found = {}

    def prefill() -> None:
        outputs = model.model.language_model(
            inputs_embeds=prompt.inputs_embeds, visual_mask=prompt.visual_mask, images=prompt.images
        )
        found["states"] = outputs.last_hidden_state

    prefill()
    expected = found["states"].clone()
    graph = CapturedCall(prefill)
    in_graph = found["states"].zero_()
    graph()
    torch.testing.assert_close(in_graph, expected)
    prompt.inputs_embeds.mul_(0.5)
    graph()
    assert not torch.allclose(in_graph, expected), "the graph read other inputs than the call"
