"""Patches are named by the boxes that their middles are in, and the projector learns their names and places."""

import math

import numpy as np
import pytest
import torch
from transformers import LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from modeling.user_error import UserError
from tests.families.llava import DINOV2
from tests.training.instruct.tiny_instruct import tiny_processor
from training.instruct.naming import NO_NAME, PatchNamer, Thing, patch_names, read_things

NAMES = {"blue circle": 0, "cross": 1, "square": 2}
THINGS = [Thing("cross", 0, 0, 30, 20), Thing("square", 10, 5, 35, 35), Thing("blue circle", 70, 40, 1, 1)]


def slow_names(things, size, side) -> list[int]:
    found = []
    for row in range(side):
        for column in range(side):
            y, x = (row + 0.5) * size[0] / side, (column + 0.5) * size[1] / side
            here = [NAMES[t.name] for t in things if 0 <= x - t.x < t.width and 0 <= y - t.y < t.height]
            found.append(here[-1] if here else NO_NAME)
    return found


@pytest.mark.parametrize("size, side", [((60, 80), 6), ((50, 50), 3), ((40, 90), 7)])
def test_a_patch_has_the_name_of_the_box_that_its_middle_is_in(size, side):
    found = patch_names(THINGS, NAMES, size, side)
    assert found.tolist() == slow_names(THINGS, size, side)
    assert {1, 2, NO_NAME} <= set(found.tolist()) and found.tolist() != slow_names(THINGS[::-1], size, side)


def test_things_are_read_from_a_row():
    row = {"name": "cross", "x": 0, "y": 0, "width": 30, "height": 20, "style": "drawn"}
    assert read_things([row], "row 0") == THINGS[:1]
    assert read_things([], "row 0") == []
    wrong = [{"name": value} for value in (None, 3, "", " ", ["cross"])]
    wrong += [{"x": value} for value in (None, "a", "3", True, [0], math.nan, -math.inf, 1e7, 10**400)]
    wrong += [{"width": value} for value in (0, -5, math.nan)]
    values = [[row, {**row, **change}] for change in wrong]
    for value in (3, None, "cross", row, ["cross"], [{"name": "cross"}], *values):
        with pytest.raises(UserError, match="row 0: got .*allowed: a list"):
            read_things(value, "row 0")


@pytest.fixture
def learnt():
    """A namer, and pictures whose features tell name and place of each patch."""
    torch.manual_seed(0)
    config: LlavaConfig = DINOV2.config()
    config.text_config.hidden_size = 64
    width, side = config.vision_config.hidden_size, 3
    named = torch.randint(-1, 3, (64, side**2))
    features = torch.nn.Embedding(4, width)(named + 1) + torch.nn.Embedding(side**2, width).weight
    features = (0.01 * features + 5).detach()
    flat = features.flatten(0, 1)
    embeddings = torch.randn(60, 64) * 3
    return features, named.masked_fill(named < 0, NO_NAME), PatchNamer(
        LlavaMultiModalProjector(config), flat.mean(0), flat.std(0), embeddings, tiny_processor().tokenizer,
        list(NAMES), side, 0.6,
    )  # fmt: skip


def test_names_are_learnt_and_the_projector_takes_features_as_they_are(learnt):
    features, named, namer = learnt
    optimizer = torch.optim.AdamW(namer.parameters(), lr=1e-2)
    seen = []
    for _ in range(60):
        outputs = namer(features, named)
        optimizer.zero_grad()
        outputs["loss"].backward()
        optimizer.step()
        seen.append((outputs["loss"].item(), outputs["right"].item()))
    assert seen[0][1] < 0.7 and seen[-1][1] > 0.95 and seen[-1][0] < 0.5 * seen[0][0]
    wrong = namer(features, named.masked_fill(named == 0, 1))["right"]
    assert wrong < 0.8, "a name for another is noticed"
    with torch.no_grad():
        expected = namer.projector((features - namer.mean) / namer.deviation)
        namer.fold()
        torch.testing.assert_close(namer.projector(features), expected, rtol=1e-3, atol=1e-3)


def test_a_visual_token_aims_at_its_name_and_place(learnt):
    """Where the projector gives exactly the target, the distance is none and names and places are told right."""
    _, named, namer = learnt
    words = {"name": namer.names, "place": namer.places}
    target = words["place"][torch.arange(9)] + torch.stack(
        [words["name"][name] if name >= 0 else torch.zeros(64) for name in named[0].tolist()]
    )
    namer.projector = torch.nn.Sequential()  # gives its inputs
    namer.mean, namer.deviation = torch.tensor(0.0), torch.tensor(1 / namer.length)
    outputs = namer(target[None], named[:1])
    assert outputs["right"] == 1
    assert outputs["loss"] < namer(target[None].roll(1, dims=1), named[:1])["loss"]
    assert np.isclose(
        words["place"].norm(dim=-1).mean().item() / words["name"].norm(dim=-1).mean().item(), 0.6, atol=0.3
    )
