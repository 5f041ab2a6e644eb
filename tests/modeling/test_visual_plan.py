"""The plan contract: what is read, what is refused, what is dead."""

import json
import re

import pytest

from modeling.layer_plan import LayerPlan, Rank
from modeling.visual_plan import VisualPlan

UNITS, NEURONS = 4, 16


def plan(*layers: dict) -> VisualPlan:
    return VisualPlan.from_dict({"version": 1, "layers": list(layers)})


def test_empty_layers_are_the_dense_model():
    assert plan({}, {}) == VisualPlan.dense(2)
    assert VisualPlan.dense(2).to_dict() == {"version": 1, "layers": [{}, {}]}


def test_file_round_trip(tmp_path):
    written = plan(
        {"heads": [3, 1], "ffn": 5, "radius": 2, "bidirectional": True},
        {"tokens": 0.25, "rank": {"by": "text_attention", "rows": "instruction"}},
        {"attend": False, "ffn": 0},
        {"tokens": 0.125, "rank": {"by": "random", "seed": 7}},
        {"tokens": 0},
    )
    assert [layer.tokens for layer in written.layers] == [
        1,
        0.25,
        0.25,
        0.125,
        0,
    ]  # carried into those after it as well
    assert written.to_dict()["layers"][3]["rank"] == {"by": "random", "seed": 7}
    written.save(tmp_path / "plan.json")
    assert VisualPlan.load(tmp_path / "plan.json") == written
    assert json.loads((tmp_path / "plan.json").read_text())["layers"][0]["heads"] == [3, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    "layers, message",
    [
        ([{"token": 0.5}], "layer 0: layer: unknown key 'token'; did you mean 'tokens'?"),
        ([{"tokens": 1.5}], "layer 0: tokens: got 1.5, allowed: a fraction"),
        ([{"tokens": True}], "tokens: got True"),
        ([{}, {"tokens": 0.2}, {"tokens": 0.5}], "layer 2: tokens: got 0.5 after 0.2"),
        (
            [{"tokens": 0.5}],
            "layer 0: tokens falls to 0.5 by text_attention, but no attention precedes layer 0; allowed: 1, 0, or a",
        ),
        (
            [{"tokens": 0.5, "rank": {"by": "image_attention"}}],
            "layer 0: tokens falls to 0.5 by image_attention, but no attention",
        ),
        ([{"read": False}, {"tokens": 0.5}], "text does not read visual tokens in layer 0"),
        (
            [{"attend": False}, {"tokens": 0.5, "rank": {"by": "image_attention"}}],
            "layer 1: tokens falls to 0.5 by image_attention, but visual tokens do not attend in layer 0",
        ),
        ([{"heads": []}, {"tokens": 0.5, "rank": {"by": "image_attention"}}], "visual tokens do not attend in layer 0"),
        ([{"heads": 0}, {"tokens": 0.5}], "text does not read visual tokens in layer 0"),
        ([{"attend": 1}], "attend: got 1, allowed: true or false"),
        ([{"heads": -1}], "heads: got -1"),
        ([{"heads": [0, 0]}], "repeated index"),
        ([{"ffn": "all"}], "ffn: got 'all'"),
        ([{"radius": 1.5}], "radius: got 1.5"),
        ([{"bidirectional": True}], "only together with 'radius'"),
        (
            [{"rank": {"by": "magic"}}],
            "rank.by: got 'magic', allowed: text_attention, image_attention, cls_attention, uniform, random",
        ),
        ([{"rank": {"by": "random", "sed": 1}}], "rank: unknown key 'sed'; did you mean 'seed'?"),
        ([{"rank": {"by": "random", "seed": -1}}], "rank.seed: got -1, allowed: an integer >= 0"),
        ([{"rank": {"by": "random", "seed": True}}], "rank.seed: got True"),
        ([{"rank": {"by": "uniform", "seed": 1}}], "rank.seed: got 1 with by 'uniform', allowed: only with 'random'"),
        (
            [{"rank": {"by": "random", "rows": "instruction"}}],
            "rank.rows: got 'instruction' with by 'random', allowed: only with 'text_attention'",
        ),
        ([{"rank": {"rows": "all"}}], "rank.rows: got 'all'"),
        ([], "got no layers"),
        ("dense", "layers: got 'dense'"),
    ],
)
def test_bad_plans_are_refused_with_one_line(layers, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        VisualPlan.from_dict({"layers": layers})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, message", [("{", "not a JSON file"), ("[]", "expected a JSON object"), (None, "no such plan file")]
)
def test_bad_plan_files(tmp_path, content, message):
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        VisualPlan.load(path)


def test_plan_must_fit_the_model():
    VisualPlan.dense(2).check(2, UNITS, NEURONS)
    with pytest.raises(ValueError, match="got 2 layers, the model has 3"):
        VisualPlan.dense(2).check(3, UNITS, NEURONS)
    with pytest.raises(ValueError, match="layer 1: heads: got 5, the model has 4"):
        plan({}, {"heads": 5}).check(2, UNITS, NEURONS)
    with pytest.raises(ValueError, match="layer 0: ffn: got 16, the model has 16"):
        plan({"ffn": [16]}, {}).check(2, UNITS, NEURONS)


def test_last_read_layer_updates_nothing():
    live = VisualPlan.dense(3).live(UNITS, NEURONS)
    assert [(layer.attend, layer.num_ffn, layer.read) for layer in live] == [
        (True, NEURONS, True),
        (True, NEURONS, True),
        (False, 0, True),
    ]


def test_withdrawn_equals_unread_from_there_on():
    withdrawn = plan({}, {}, {"tokens": 0}, {"tokens": 0}).live(UNITS, NEURONS)
    unread = plan({}, {}, {"read": False}, {"read": False}).live(UNITS, NEURONS)
    assert withdrawn == unread
    assert [layer.tokens for layer in withdrawn] == [1, 1, 0, 0] and not withdrawn[2].keys
    assert (withdrawn[1].attend, withdrawn[1].num_ffn, withdrawn[1].read) == (False, 0, True)


def test_blind_layer_below_a_read_layer_still_updates():
    live = plan({"read": False}, {}).live(UNITS, NEURONS)
    assert live[0].attend and live[0].num_ffn == NEURONS and not live[0].read and live[0].keys


def test_no_served_head_reads_and_attends_nothing():
    live = plan({"heads": []}, {}).live(UNITS, NEURONS)
    assert not live[0].attend and not live[0].read and live[0].num_ffn == NEURONS


def test_survivors_are_chosen_only_where_somebody_reads_them():
    live = plan({}, {"tokens": 0.5}, {"tokens": 0.5, "read": False}).live(UNITS, NEURONS)
    assert [layer.keep for layer in live] == [False, True, False]
    assert [layer.tokens for layer in live] == [1, 0.5, 0]


def test_replace_changes_one_layer():
    changed = VisualPlan.dense(2).replace(1, ffn=3, rank=Rank(rows="instruction"))
    assert changed.layers[0] == LayerPlan() and changed.layers[1].ffn == 3
    assert VisualPlan.from_dict(changed.to_dict()) == changed
    withdrawn = VisualPlan.dense(3).replace(1, tokens=0)
    assert [layer.tokens for layer in withdrawn.layers] == [1, 0, 0]
    assert withdrawn.to_dict()["layers"] == [{}, {"tokens": 0.0}, {}]


def test_integer_plans_are_recognised():
    assert plan({"heads": 2, "ffn": 3}).is_integer
    assert not plan({"heads": [0, 1]}).is_integer
