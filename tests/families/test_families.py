"""Every family is its stock model under the dense plan, equals the slow reference under any plan, and costs what is
claimed.

Its data are read, its answers kept, its plans found and its gates learned.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from checkpoints.families import sparse_class, vision_macs
from data.collator import TEXT_KEYS, Collator, pictures_of, predicts_answer
from data.images import tokens_at
from data.shapes.world import SplitSettings, WorldSettings, write_world
from data.sources.reading import load_samples
from data.sources.source import Source
from modeling.class_attention import class_attention_of
from modeling.layer_plan import Rank
from modeling.visual_flops import DecoderShape, kv_bytes, plan_cost
from modeling.visual_plan import VisualPlan
from tests.families.family import (
    COLLATORS,
    TinyFamily,
    as_batch,
    batch_of,
    relative_error,
    sample_of,
    text_rows,
    with_telling_class_token,
)
from tests.families.internvl import INTERNVL
from tests.families.llava import LLAVA
from tests.families.llava_next import LLAVA_NEXT
from tests.families.qwen2_vl import QWEN2_VL
from tests.indexed import indexed
from tests.modeling.masked_reference import reference_logits
from tests.modeling.random_plans import random_plan
from training.distillation.arguments import training_arguments
from training.distillation.lora import add_lora
from training.distillation.teacher_answers import AnsweredDataset, encoded_pictures, write_teacher_answers
from training.distillation.trainer import DistillationTrainer
from training.gates.budgeted import BudgetedGates
from training.gates.start import base_plan, gates_at_start
from training.gates.trainer import GateTrainer
from training.measure.calibration import calibrate
from training.measure.costs import fractions
from training.measure.price import PlanPrice
from training.planners.greedy import GreedyPlanner
from training.planners.tools.search import Search
from training.recipe.distillation import DistillationSettings
from training.recipe.gates import GateSettings
from training.recipe.lora import LoraSettings
from training.recipe.training import TrainingSettings

FAMILIES = [*LLAVA, *LLAVA_NEXT, QWEN2_VL, *INTERNVL]
LAYERS, UNITS, NEURONS = 3, 2, 24
RANKED = VisualPlan.from_dict(
    {
        "layers": [
            {"tokens": 0.7, "rank": {"by": "random"}},
            {"tokens": 0.5, "rank": {"by": "image_attention"}},
            {"tokens": 0.3},
        ]
    }
)
PLANS = [RANKED, *(random_plan(seed, LAYERS, UNITS, NEURONS) for seed in range(7))]

LISTED = VisualPlan.dense(LAYERS).replace(0, heads=(1,), ffn=(3, 20, 7), radius=1).replace(2, tokens=0.0)


def by_class_token(tower_layers: int) -> VisualPlan:
    rank = {"by": "cls_attention", "tower_layers": tower_layers}
    return VisualPlan.from_dict({"layers": [{"tokens": 0.6, "rank": rank}, {}, {"tokens": 0.3, "rank": rank}]})


families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@families
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_dense_plan_is_the_stock_model(family: TinyFamily, padding_side):
    dense, sparse = family.dense(), family.sparse()
    batch = COLLATORS[padding_side](family.samples(0))
    rows = text_rows(sparse, batch)
    outputs = [dense(**family.stock_inputs(batch)), sparse(**batch)]
    assert relative_error(outputs[1].logits[rows], outputs[0].logits[rows]) < 1e-5
    for output in outputs:
        output.loss.backward()
    mine = dict(sparse.named_parameters())
    gradients = {name: value.grad for name, value in dense.named_parameters() if value.grad is not None}
    assert any("visual" in name or "vision" in name for name in gradients), "gradients reach the tower"
    whole = [
        torch.cat([of[name].flatten() for name in gradients])
        for of in ({n: p.grad for n, p in mine.items()}, gradients)
    ]
    assert float((whole[0] - whole[1]).norm() / whole[1].norm()) < 1e-5


@families
def test_dense_plan_generates_as_the_stock_model(family: TinyFamily):
    batch = batch_of(family.samples(1), "left")
    for settings in ({}, {"num_beams": 2}):
        answers = [
            model.generate(**inputs, max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=None, **settings)
            for model, inputs in ((family.dense(), family.stock_inputs(batch)), (family.sparse(), batch))
        ]
        assert torch.equal(*answers)


@families
def test_text_alone_after_pictures_is_answered_as_ever(family: TinyFamily):
    """Another number of samples, and no picture: what an earlier batch left behind has no say."""
    model, samples = family.sparse(), family.samples(0)
    text_alone = batch_of([sample_of([1, 40, 41, 42]), sample_of([1, 43, 44])])
    expected = model(**text_alone).logits
    model(**batch_of(samples))
    torch.testing.assert_close(model(**text_alone).logits, expected)
    model.train()
    model(**batch_of(samples))
    torch.testing.assert_close(model(**text_alone).logits, expected)


@families
@pytest.mark.parametrize("plan", PLANS)
def test_any_plan_is_the_slow_reference(family: TinyFamily, plan):
    model, samples = family.sparse(), family.samples(2)
    model.set_visual_plan(plan)
    with torch.no_grad():
        expected = [reference_logits(model, plan, as_batch(sample), layout=family.layout) for sample in samples]
        expected = torch.cat(
            [logits[text_rows(model, as_batch(one))[0]] for logits, one in zip(expected, samples, strict=True)]
        )
        for side in ("left", "right"):
            batch = batch_of(samples, side)
            assert relative_error(model(**batch).logits[text_rows(model, batch)], expected) < 1e-5


@families
def test_the_comparison_with_the_reference_can_fail(family: TinyFamily):
    """Told of another plan, of one tile or frame for another, or of other places, the reference says something else."""
    model, sample = family.sparse(), family.samples(2)[-1]
    plan = VisualPlan.dense(LAYERS).replace(0, radius=0)
    model.set_visual_plan(plan)

    def moved(model, sample):
        laid_out = family.layout(model, sample)
        return replace(laid_out, places=torch.zeros_like(laid_out.places))

    with torch.no_grad():
        rows = text_rows(model, as_batch(sample))
        found = model(**as_batch(sample)).logits[rows]
        wrong = [
            reference_logits(model, plan.replace(0, heads=1), as_batch(sample), layout=family.layout),
            reference_logits(model, plan, as_batch(sample), layout=moved),
        ]
        for logits in wrong:
            assert relative_error(logits[rows[0]], found) > 1e-3


@pytest.mark.parametrize("family", [*LLAVA, *LLAVA_NEXT, *INTERNVL], ids=lambda family: family.name)
def test_class_tokens_rank(family: TinyFamily, tmp_path):
    """Ranking by one layer of the tower, and by the sum over two, equals the slow reference.

    It does so with pictures, with encoded features, with kept features, and for beams.
    """
    model, samples = with_telling_class_token(family.sparse()), family.samples(8)
    plans = [by_class_token(1), by_class_token(2)]
    write_teacher_answers(
        model, Answerable(samples), COLLATORS["left"], tmp_path / "answers", batch_size=2, autocast=None
    )
    kept = AnsweredDataset(Answerable(samples), tmp_path / "answers")
    answered = COLLATORS["left"]([kept[index] for index in range(len(samples))])
    batch = batch_of(samples, "left")
    text, pictures = {name: batch[name] for name in TEXT_KEYS if name in batch}, pictures_of(batch)
    rows, found = text_rows(model, batch), []
    with torch.no_grad():
        encoded = model.encode_pictures(pictures, for_every_plan=True)
        answered.pop("teacher_logits")
        for plan in plans:
            expected = [reference_logits(model, plan, as_batch(sample), layout=family.layout) for sample in samples]
            expected = torch.cat(
                [logits[text_rows(model, as_batch(one))[0]] for logits, one in zip(expected, samples, strict=True)]
            )
            with model.use_plan(plan):
                encoded_for_it = model.encode_pictures(pictures)
                for given in (pictures, encoded, encoded_for_it, encoded_pictures(pictures_of(answered))):
                    assert relative_error(model(**text, **given).logits[rows], expected) < 1e-5
                scores = class_attention_of(encoded_for_it["mm_encoder_outputs"]["image"])
                assert scores.shape[1] == plan.tower_layers, "no state of the tower is kept that it does not need"
                found.append(expected)
    assert class_attention_of(model.encode_pictures(pictures)["mm_encoder_outputs"]["image"]) is None, "dense"
    assert relative_error(*found) > 1e-3
    model.set_visual_plan(plans[1])
    settings = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2, "pad_token_id": 0, "eos_token_id": None}
    asked = (
        samples[:2] if family in LLAVA else samples
    )  # beams of transformers 5.17 mix up a prompt's pictures (README)
    answers = model.generate(**batch_of(asked, "left"), **settings)
    for sample, answer in zip(asked, answers, strict=True):
        assert torch.equal(answer[-4:], model.generate(**batch_of([sample]), **settings)[0, -4:])


@families
def test_towers_without_such_a_class_token_are_refused(family: TinyFamily):
    model, layers = family.sparse(), 1 if family is QWEN2_VL else 4
    with pytest.raises(
        ValueError,
        match=f"rank by cls_attention over {layers} layers: the vision tower .* has [023] with a class token",
    ):
        model.set_visual_plan(by_class_token(layers))
    with pytest.raises(ValueError, match="rank by cls_attention"), model.use_plan(by_class_token(layers)):
        pass


@families
@pytest.mark.parametrize("plan", [VisualPlan.dense(LAYERS), *PLANS[:3], "class token"])
def test_claimed_is_executed(family: TinyFamily, plan):
    if plan == "class token":
        plan = PLANS[3] if family is QWEN2_VL else by_class_token(2)
    model, sample = family.sparse(), family.samples(3)[-1]
    model.set_visual_plan(plan)
    batch = as_batch(sample)
    caught = {}
    model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: caught.update(kwargs), with_kwargs=True
    )
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        cache = model(**batch, use_cache=True).past_key_values
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    images, is_visual = caught["images"], caught["visual_mask"][0]
    text_tokens, text_before = int((~is_visual).sum()), int(is_visual.long().argmax())
    decoder, macs = DecoderShape.from_config(model.config.text_config), vision_macs(model.config, images)
    claimed = plan_cost(plan, decoder, images, text_tokens, text_before, vision_macs=macs)
    root = type(model).__name__
    # Blocks of the tower that rank make their keys twice, which is not claimed.
    of_keys = [count for name, count in flops.items() if "vision_tower" in name and name.endswith(("k_proj", ".key"))]
    again = sum(of_keys) * plan.tower_layers / (len(of_keys) + plan.tower_layers) if plan.tower_layers else 0
    assert claimed.flops_total - claimed.flops_prefill == pytest.approx(
        flops[f"{root}.model"] - flops[f"{root}.model.language_model"] - again, rel=0.02
    )
    live = plan.live(UNITS, NEURONS)
    if not any(layer.radius is not None or (layer.keep and layer.rank.rows == "instruction") for layer in live):
        # Tiles do not see the text between pictures of a prompt, and it ranks nothing. The count is an upper bound.
        assert claimed.flops_prefill == pytest.approx(flops[f"{root}.model.language_model"], rel=0.02)
    assert kv_bytes(plan, decoder, images, text_tokens, 4) == cache.num_bytes()


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    """A few questions about pictures, as LLaVA JSON."""
    world = WorldSettings(seed=1, splits={"questions": SplitSettings(part="test", rows=4)})
    return write_world(tmp_path_factory.mktemp("world"), world)["questions"]


@pytest.mark.parametrize(
    "family",
    [
        # One family in every run of the tests, the others where there is time. Tests of each command ask a LLaVA.
        pytest.param(family, id=family.name, marks=[] if family is QWEN2_VL else [pytest.mark.slow])
        for family in FAMILIES
    ],
)
def test_the_commands_answer(family: TinyFamily, run_script, questions, tmp_path):
    """A dense model in its family's own files is made sparse, compared in a fresh process, asked and timed."""
    dense, sparse, plan_file = (tmp_path / name for name in ("dense", "sparse", "plan.json"))
    family.dense().save_pretrained(dense)
    family.processor().save_pretrained(dense)
    plan = LISTED if family is QWEN2_VL else LISTED.replace(1, tokens=0.6, rank=Rank(by="cls_attention"))
    plan.save(plan_file)
    done = run_script("sparsify.py", "--model", dense, "--plan", plan_file, "--output", sparse)
    assert done.returncode == 0 and "written and verified" in done.stdout, done.stderr
    stock_class = sparse_class(family.config()).stock_class
    with pytest.raises(
        (ValueError, KeyError, StrictDataclassError), match="sparse_"
    ):  # it refuses rather than runs it dense
        stock_class.from_pretrained(sparse)
    done = run_script(
        "evaluate.py", "--model", sparse, "--dense", dense, "--data", questions, "--json", tmp_path / "asked.json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "asked.json").read_text())["evaluations"]["dense"]["count"] == 4
    quick = (
        "--text-tokens",
        "4",
        "--decode-tokens",
        "1",
        "--repeats",
        "1",
        "--batch-sizes",
        "2",
        "--neighbour-sides",
        "",
    )
    done = run_script("benchmark.py", "--model", sparse, *quick, "--device", "cpu")
    assert done.returncode == 0 and "prefill x" in done.stdout, done.stderr


@families
def test_listed_units_are_permuted(family: TinyFamily):
    model, batch = family.sparse(LISTED), as_batch(family.samples(4)[-1])
    assert model.visual_plan.is_integer
    listed = family.sparse()
    with torch.no_grad(), listed.use_plan(LISTED):
        rows = text_rows(model, batch)
        assert relative_error(model(**batch).logits[rows], listed(**batch).logits[rows]) < 1e-5


@families
def test_samples_are_read(family: TinyFamily, questions, tmp_path):
    """The family's model takes pictures and tokens as its processor makes them. The index compares them."""
    samples, _ = load_samples(Source(path=questions, images=questions.parent))
    processor, model = family.processor(), family.sparse()
    dataset = indexed(samples, processor, tmp_path)
    batch = Collator(processor)([dataset[index] for index in range(len(dataset))])
    loss = model(**batch).loss
    loss.backward()
    assert loss.isfinite() and any(
        value.grad is not None and value.grad.any() for value in model.vision_tower.parameters()
    )


@families
@pytest.mark.parametrize("size", [(24, 24), (30, 40), (61, 200), (300, 77)])
def test_costs_are_counted_for_the_grids_that_the_processor_makes(family: TinyFamily, size):
    processor, model = family.processor(), family.sparse()
    tokens, grids = tokens_at(size, processor), model.image_grids(model.config, *size)
    assert int((tokens == processor.image_token_id).sum()) == len(model.visual_rows(grids))


@families
def test_the_teachers_answers_are_kept(family: TinyFamily, tmp_path):
    """Kept features and sizes of pictures give the logits that pictures give, and the losses the same gradients."""
    dataset = Answerable(family.samples(5))
    write_teacher_answers(
        family.sparse(), dataset, COLLATORS["right"], tmp_path / "answers", batch_size=2, autocast=None
    )
    kept = AnsweredDataset(dataset, tmp_path / "answers")
    model = family.sparse(VisualPlan.dense(LAYERS).replace(1, ffn=4))
    asked = COLLATORS["right"](list(dataset))
    answered = COLLATORS["right"]([kept[index] for index in range(len(dataset))])
    assert not any(name.startswith("pixel_values") for name in answered)
    supervised = predicts_answer(asked["labels"])
    with torch.no_grad():
        expected = family.sparse()(**{**asked, "labels": None}, logits_mask=supervised).logits
        torch.testing.assert_close(answered.pop("teacher_logits"), expected, rtol=1e-5, atol=1e-5)
        text = {name: answered[name] for name in ("input_ids", "attention_mask")}
        of_kept = model(**text, **encoded_pictures(pictures_of(answered)), logits_mask=supervised).logits
        torch.testing.assert_close(
            of_kept, model(**{**asked, "labels": None}, logits_mask=supervised).logits, rtol=1e-5, atol=1e-5
        )


@families
def test_statistics_and_plans_are_found(family: TinyFamily, tmp_path):
    """Calibration and the greedy search run on the family's own batches; calibrated attention is the stock model's."""
    model, samples = family.sparse(), family.samples(6)
    batches = [COLLATORS["right"](samples)]
    statistics = calibrate(model, batches, tmp_path)
    dense, sample = family.dense(), as_batch(samples[-1])
    dense.set_attn_implementation("eager")
    with torch.no_grad():
        maps = dense(**family.stock_inputs(sample), output_attentions=True).attentions
    is_visual = family.layout(model, sample).image >= 0
    readers = ~is_visual & (torch.arange(len(is_visual)) > is_visual.long().argmax())
    for layer, of_heads in enumerate(maps):  # [1, heads, T, T]
        share = of_heads[0][:, readers][:, :, is_visual].sum(-1).mean(1).view(UNITS, -1).mean(1)
        torch.testing.assert_close(statistics.activity[-1, layer], share, rtol=1e-4, atol=1e-5)
    plan = GreedyPlanner(planner="greedy", budget={"visual_flops": 0.3}).find(Search(model, batches, statistics))
    assert 0 < fractions(plan, model.config)["visual_flops"] <= 0.3


@families
def test_gates_and_adapters_learn(family: TinyFamily, tmp_path):
    """Gates beside LoRA learn in two steps, and so does LoRA of the student under the hard plan."""
    model, samples = family.sparse(), Answerable(family.samples(7))
    statistics = calibrate(model, [COLLATORS["right"](list(samples))], tmp_path / "calibration")
    settings = GateSettings(planner="gates", budget={"visual_flops": 0.5}, steps=2, ffn_blocks=4)
    losses = DistillationSettings(cross_entropy_weight=0.5, forward_kl_weight=1.0)
    training = TrainingSettings(
        max_steps=2,
        micro_batch_size=3,
        learning_rate=1e-2,
        warmup_ratio=0.0,
        precision="float32",
        deepspeed=None,
        report_to=(),
    )
    dense = VisualPlan.dense(LAYERS)
    gates = BudgetedGates(
        gates_at_start(model.config, statistics, dense, settings),
        base_plan(dense),
        PlanPrice(model.config, settings.budget.measure),
    )
    wide = add_lora(model, LoraSettings(rank=2, alpha=4))
    narrow = add_lora(family.sparse(dense.replace(0, heads=(1,), ffn=5)), LoraSettings(rank=2, alpha=4))
    for trainer_class, student, own in (
        (GateTrainer, wide, {"gates": gates, "settings": settings}),
        (DistillationTrainer, narrow, {}),
    ):
        learned = dict((*student.named_parameters(), *(gates.named_parameters() if own else ())))
        before = {name: value.detach().clone() for name, value in learned.items() if value.requires_grad}
        trainer_class(
            model=student,
            args=training_arguments(training, tmp_path / trainer_class.__name__, seed=0, name="student"),
            train_dataset=samples,
            data_collator=COLLATORS["right"],
            distillation=losses,
            **own,
        ).train()
        changed = [name for name, value in learned.items() if name in before and not torch.equal(value, before[name])]
        assert any("lora_B" in name for name in changed)
        assert trainer_class is DistillationTrainer or any("log_alpha" in name for name in changed)


class Answerable(list):
    """Samples that can be had without their pictures."""

    def tokens(self, index: int) -> dict[str, torch.Tensor]:
        return {name: value for name, value in self[index].items() if name in TEXT_KEYS}
