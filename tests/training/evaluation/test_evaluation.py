"""Generated answers do not depend on batch size and order, and are scored per family with correct intervals."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from data.benchmarks.benchmark import Record
from data.sample import Sample
from modeling.configuration_sparse_llava import SparseLlavaConfig
from modeling.layer_plan import LayerPlan
from modeling.modeling_sparse_llava import SparseLlavaForConditionalGeneration
from modeling.visual_plan import VisualPlan
from tests.tiny_processor import tiny_processor
from training.evaluation.asking import evaluate as evaluate_benchmarks
from training.evaluation.intervals import wilson
from training.evaluation.questions import asked_of
from training.evaluation.results import Evaluation

QUESTIONS = (
    ("attribute", "<image>\nwhat colour is the square ?", "red"),
    ("existence", "<image>\nis there a circle ?", "no"),
    ("caption", "<image>\ndescribe the picture", "a red square and a blue circle above the green cross"),
    ("relation", "<image>\nwhich shape is left of the yellow triangle in the picture ?", "circle"),
    ("attribute", "<image>\nwhich colour ?", "blue"),
    ("reading", "the word says what ?", "A"),  # no picture
)


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def model(processor):
    """A random LLaVA with large weights, so that answers are long, differ by picture, and withstand rounding."""
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(LlavaConfig(**config_values(processor))).eval()


def config_values(processor) -> dict:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {
        "text_config": LlamaConfig(**sizes, vocab_size=len(processor.tokenizer), initializer_range=0.6),
        "vision_config": CLIPVisionConfig(**sizes, image_size=24, patch_size=8, initializer_range=0.6),
        "image_token_id": processor.image_token_id,
        "vision_feature_select_strategy": "default",
        "vision_feature_layer": -1,
    }


def sparse(model: LlavaForConditionalGeneration, processor, plan: VisualPlan) -> SparseLlavaForConditionalGeneration:
    """Returns the same weights in the sparse class, under a plan."""
    student = SparseLlavaForConditionalGeneration(
        SparseLlavaConfig(**config_values(processor), visual_plan=plan.to_dict())
    )
    student.load_state_dict(model.state_dict())
    return student.eval()


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(1)
    samples = []
    for index, (family, question, answer) in enumerate(QUESTIONS):
        path = folder / f"{index}.png"
        pixels = torch.randint(0, 256, (24, 24, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
        images = (path,) if "<image>" in question else ()
        samples.append(Sample(id=str(index), images=images, turns=((question, answer),), family=family))
    return samples


def evaluate(model, processor, samples, **settings) -> Evaluation:
    return evaluate_benchmarks(model, processor, [asked_of(samples)], **settings)


def predictions(evaluation: Evaluation) -> dict[str, str]:
    return {record.id: record.prediction for record in evaluation.records}


def test_batch_size_and_order_change_nothing(model, processor, samples):
    alone = evaluate(model, processor, samples, batch_size=1)
    assert len(set(predictions(alone).values())) > 3  # the model says different things, so mixing rows up would show
    assert predictions(evaluate(model, processor, samples, batch_size=4)) == predictions(alone)
    assert predictions(evaluate(model, processor, samples[::-1], batch_size=3)) == predictions(alone)
    assert [record.id for record in alone.records] == [sample.id for sample in samples]


def test_sparse_models_answer_alike_under_the_dense_plan_and_otherwise_under_another(model, processor, samples):
    dense = predictions(evaluate(model, processor, samples, batch_size=4))
    same = sparse(model, processor, VisualPlan.dense(2))
    assert predictions(evaluate(same, processor, samples, batch_size=4)) == dense

    student = sparse(model, processor, VisualPlan((LayerPlan(heads=1, ffn=16), LayerPlan(read=False))))
    alone = predictions(evaluate(student, processor, samples, batch_size=1))
    assert predictions(evaluate(student, processor, samples, batch_size=4)) == alone
    assert alone != dense
    assert alone["5"] == dense["5"]  # no picture, no plan


def test_answers_are_what_greedy_generation_from_a_hand_made_prompt_gives(model, processor, samples):
    sample = samples[3]
    inputs = processor(
        text=f"USER: {sample.turns[0][0]} ASSISTANT:", images=Image.open(sample.images[0]), return_tensors="pt"
    )
    generated = model.generate(
        **inputs, do_sample=False, max_new_tokens=5, pad_token_id=processor.tokenizer.pad_token_id
    )
    expected = processor.tokenizer.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    got = evaluate(model, processor, [sample], batch_size=1, max_new_tokens=5)
    assert got.records[0].prediction == expected.strip()


def test_a_right_answer_counts_and_a_wrong_one_does_not(model, processor, samples):
    first = evaluate(model, processor, samples[:1], batch_size=1)
    says = first.records[0].prediction
    right = Sample(id="right", images=samples[0].images, turns=((QUESTIONS[0][1], says),), family="attribute")
    both = evaluate(model, processor, [samples[0], right], batch_size=2, max_new_tokens=5)
    assert first.accuracy == 0.0
    assert both.accuracy == 0.5
    assert [record.score for record in both.records] == [0.0, 1.0]


def test_grey_pictures_all_look_the_same_and_pictures_do_not(model, processor, samples):
    question, answer = QUESTIONS[0][1:]
    pictures = [
        Sample(id=str(i), images=sample.images, turns=((question, answer),), family="attribute")
        for i, sample in enumerate(samples[:5])
    ]
    seen = evaluate(model, processor, pictures, batch_size=5, max_new_tokens=8)
    grey = evaluate(model, processor, pictures, batch_size=5, max_new_tokens=8, pixel_transform="grey")
    assert len(set(predictions(seen).values())) > 1
    assert len(set(predictions(grey).values())) == 1


def test_answers_may_run_past_the_longest_truth_but_not_for_ever(model, processor, samples):
    records = evaluate(model, processor, samples, batch_size=8).records
    lengths = {record.family: len(record.prediction.split()) for record in records}
    assert max(lengths[family] for family in ("existence", "reading")) <= 5
    assert lengths["caption"] > 5


def test_the_model_is_left_in_the_mode_it_was_in(model, processor, samples):
    model.train()
    evaluate(model, processor, samples[:1], batch_size=1)
    assert model.training
    model.eval()
    evaluate(model, processor, samples[:1], batch_size=1)
    assert not model.training


@pytest.mark.parametrize("family", [None, "poetry"])
def test_a_sample_without_metric_is_refused_by_name(model, processor, samples, family):
    sample = Sample(id="row 7", images=(), turns=(("what ?", "red"),), family=family)
    with pytest.raises(ValueError, match=r"sample row 7: got family .*allowed: existence"):
        evaluate(model, processor, [*samples, sample], batch_size=2)


def test_no_samples_are_refused(model, processor):
    with pytest.raises(ValueError, match="no questions"):
        evaluate(model, processor, [], batch_size=2)


def test_wilson_interval():
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for right, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        value = wilson([1.0] * right + [0.0] * (count - right))
        assert value == pytest.approx((right / count, low, high, count), abs=5e-5)
    assert wilson([1.0] * 20).high == 1.0


def test_fractional_scores_have_their_mean_inside_the_interval():
    value = wilson([0.25, 0.5, 1.0, 0.75])
    assert value.accuracy == 0.625
    assert 0 < value.low < 0.625 < value.high < 1


def record(index: int, family: str, score: float) -> Record:
    return Record("shapes", str(index), family, family, str(index), "what ?", ("red",), "red", "red", score, None)


def test_overall_is_the_mean_over_questions_and_survives_a_file(tmp_path: Path):
    records = [
        record(0, "caption", 0.5),
        record(1, "attribute", 1.0),
        record(2, "attribute", 0.0),
        record(3, "attribute", 1.0),
    ]
    evaluation = Evaluation.of(records)
    assert evaluation.accuracy == pytest.approx(2.5 / 4)
    assert list(evaluation.families) == ["caption", "attribute"]
    assert evaluation.families["attribute"].accuracy == pytest.approx(2 / 3)
    assert evaluation.families["attribute"].count == 3

    path = tmp_path / "evaluation" / "student.json"
    evaluation.save(path)
    assert Evaluation.load(path) == evaluation
    assert json.loads(path.read_text())["families"]["caption"]["accuracy"] == 0.5
    assert [file.name for file in path.parent.iterdir()] == ["student.json"]


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_the_interval_holds_the_mean_at_its_ends(score):
    """Plots draw it as distances from the mean, which rounding once made negative."""
    for count in range(1, 300):
        got = wilson([score] * count)
        assert got.low <= got.accuracy <= got.high, count
