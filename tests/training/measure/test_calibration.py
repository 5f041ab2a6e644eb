"""Calibration statistics equal slow loops over the stock model's attentions and neurons, one sample at a time."""

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

import training.measure.calibration
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from tests.tiny_student import GRID_SIDE, IMAGE_TOKEN, TOKENS_PER_IMAGE, single_samples, tiny_batch, tiny_student
from training.measure.calibration import Calibration, calibrate

NUM_LAYERS = 3
BATCHES = [tiny_batch((1, 0, 2), seed=1), tiny_batch((0,), seed=2), tiny_batch((2, 1), seed=3, padding_side="left")]


def stock_model(model) -> LlavaForConditionalGeneration:
    """Returns the same weights in the stock class, which gives its attentions."""
    own = ("model_type", "architectures", "visual_plan")
    values = {name: value for name, value in model.config.to_dict().items() if name not in own}
    values["text_config"] = {**values["text_config"], "model_type": "llama"}
    stock = LlavaForConditionalGeneration._from_config(LlavaConfig(**values), attn_implementation="eager")
    stock.load_state_dict(model.state_dict())
    return stock.eval()


def slow_statistics(model, batches) -> dict[str, torch.Tensor]:
    stock = stock_model(model)
    layers = stock.model.language_model.layers
    units = model.config.text_config.num_key_value_heads
    samples = [sample for batch in batches for sample in single_samples(batch) if "pixel_values" in sample]
    activity = torch.zeros(len(samples), NUM_LAYERS, units)
    importance = torch.zeros(NUM_LAYERS, model.config.text_config.intermediate_size)
    neighborhood = torch.zeros(NUM_LAYERS, GRID_SIDE)
    for number, sample in enumerate(samples):
        inputs = {name: value for name, value in sample.items() if name != "labels"}
        neurons = {}
        hooks = [
            layer.mlp.down_proj.register_forward_pre_hook(
                lambda _, args, index=index, neurons=neurons: neurons.update({index: args[0][0]})
            )
            for index, layer in enumerate(layers)
        ]
        with torch.no_grad():
            attentions = stock(**inputs, output_attentions=True).attentions
        for hook in hooks:
            hook.remove()
        visual = [place for place, token in enumerate(sample["input_ids"][0].tolist()) if token == IMAGE_TOKEN]
        text_after = [place for place in range(visual[0], sample["input_ids"].shape[1]) if place not in visual]
        for layer in range(NUM_LAYERS):
            heads = attentions[layer][0]
            for head in range(len(heads)):
                share = sum(heads[head, row, visual].sum() for row in text_after) / len(text_after)
                activity[number, layer, head // (len(heads) // units)] += share / (len(heads) // units)
            for place in visual:
                importance[layer] += neurons[layer][place].abs() / len(visual) / len(samples)
            for head in range(len(heads)):
                for i, query in enumerate(visual):
                    total = heads[head, query, visual].sum()
                    for j, key in enumerate(visual):
                        (image_i, cell_i), (image_j, cell_j) = divmod(i, TOKENS_PER_IMAGE), divmod(j, TOKENS_PER_IMAGE)
                        rows = abs(cell_i // GRID_SIDE - cell_j // GRID_SIDE)
                        columns = abs(cell_i % GRID_SIDE - cell_j % GRID_SIDE)
                        if image_i == image_j:
                            share = heads[head, query, key] / total / len(heads) / len(visual) / len(samples)
                            neighborhood[layer, max(rows, columns) :] += share
    for layer in range(NUM_LAYERS):
        importance[layer] *= layers[layer].mlp.down_proj.weight.detach().norm(dim=0)
    return {"activity": activity, "neuron_importance": importance, "neighborhood": neighborhood}


@pytest.mark.parametrize("num_kv_heads", [2, 4])
def test_statistics_equal_slow_loops(tmp_path, num_kv_heads):
    model = tiny_student(NUM_LAYERS, num_kv_heads)
    calibration = calibrate(model, BATCHES, tmp_path)
    for name, expected in slow_statistics(model, BATCHES).items():
        torch.testing.assert_close(getattr(calibration, name), expected, rtol=1e-4, atol=1e-6)
    assert calibration.unit_kl.shape == (NUM_LAYERS, num_kv_heads)
    assert (calibration.unit_kl > 0).all()
    torch.testing.assert_close(calibration.read_share, calibration.activity.mean((0, 2)))
    # Attention beyond the grid's largest distance goes to other pictures.
    assert (calibration.neighborhood.diff(dim=1) >= 0).all() and (calibration.neighborhood[:, -1] < 1).all()


def test_batch_mates_and_text_only_samples_do_not_matter(tmp_path):
    model = tiny_student(NUM_LAYERS)
    together = calibrate(model, BATCHES, tmp_path / "together")
    alone = [sample for batch in BATCHES for sample in single_samples(batch) if "pixel_values" in sample]
    apart = calibrate(model, alone, tmp_path / "apart")
    for name, value in vars(together).items():
        torch.testing.assert_close(value, getattr(apart, name), rtol=1e-4, atol=1e-6)


def test_unit_kl_is_that_of_the_plan_without_the_unit(tmp_path):
    model = tiny_student(NUM_LAYERS)
    # A unit that writes nothing on any row can be shut for nothing.
    attention = model.model.language_model.layers[1].self_attn
    with torch.no_grad():
        attention.o_proj.weight[:, : attention.o_proj.in_features // 2] = 0
    calibration = calibrate(model, BATCHES, tmp_path)
    assert calibration.unit_kl[1, 0] < 1e-6 < calibration.unit_kl[1, 1]


def test_cache_answers_for_the_same_weights_and_data_only(tmp_path, monkeypatch):
    model = tiny_student(NUM_LAYERS)
    first = calibrate(model, BATCHES[:1], tmp_path)
    gather = training.measure.calibration.own_statistics

    def refuse(*_):
        raise AssertionError("gathered again")

    monkeypatch.setattr(training.measure.calibration, "own_statistics", refuse)
    model.set_visual_plan(VisualPlan.dense(NUM_LAYERS).replace(0, ffn=0))
    again = calibrate(model, BATCHES[:1], tmp_path)
    for name, value in vars(first).items():
        assert torch.equal(value, getattr(again, name))
    with pytest.raises(AssertionError, match="gathered again"):
        calibrate(model, BATCHES[2:], tmp_path)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    with pytest.raises(AssertionError, match="gathered again"):
        calibrate(model, BATCHES[:1], tmp_path)
    monkeypatch.setattr(training.measure.calibration, "own_statistics", gather)
    calibrate(model, BATCHES[:1], tmp_path)
    assert len(list(tmp_path.glob("calibration-*"))) == 2


def test_data_without_answers_are_refused_before_anything_is_measured(tmp_path, monkeypatch):
    without_answers = {**BATCHES[0], "labels": torch.full_like(BATCHES[0]["labels"], -100)}
    monkeypatch.setattr(training.measure.calibration, "own_statistics", None)
    for batch in (without_answers, BATCHES[1]):
        with pytest.raises(UserError, match="no supervised answer in a sample with an image"):
            calibrate(tiny_student(NUM_LAYERS), [batch], tmp_path, with_unit_kl=False)


def test_saved_whole_and_read_back(tmp_path):
    calibration = Calibration(torch.rand(4, 2, 2), torch.rand(2, 8), torch.rand(2, 3), torch.rand(2, 2))
    calibration.save(tmp_path / "deep" / "calibration.safetensors")
    loaded = Calibration.load(tmp_path / "deep" / "calibration.safetensors")
    assert all(torch.equal(value, getattr(loaded, name)) for name, value in vars(calibration).items())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["calibration.safetensors"]
