"""peft's adapters on a checkpoint whose plan narrows heads and neurons.

They learn what they learn under the slow reference, which calls each module whole and masks. Both run in float64, but
for norms: in float32, rounding grows over twenty steps to about the tolerance.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    C3AConfig,
    FourierFTConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    RandLoraConfig,
    RoadConfig,
    ShiraConfig,
    VBLoRAConfig,
    VeraConfig,
    XLoraConfig,
    get_peft_model,
)
from torch import nn

from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from tests.families.family import COLLATORS, TinyFamily, batch_of, relative_error, text_rows
from tests.families.internvl import INTERNVL
from tests.families.llava import LLAVA
from tests.families.test_families import FAMILIES
from tests.modeling.masked_reference import reference_logits

PLAN = VisualPlan.dense(3).replace(0, heads=(1,), ffn=(3, 20, 7)).replace(1, heads=1, ffn=5, radius=1)
METHODS = {
    "lora": lambda names, outputs: LoraConfig(r=3, lora_alpha=6, target_modules=names),
    "dora": lambda names, outputs: LoraConfig(r=3, lora_alpha=6, target_modules=names, use_dora=True),
    "ia3": lambda names, outputs: IA3Config(target_modules=names, feedforward_modules=outputs),
    "vera": lambda names, outputs: VeraConfig(r=3, d_initial=0.5, target_modules=names),
    "loha": lambda names, outputs: LoHaConfig(r=3, alpha=3, target_modules=names),
}
OTHERS = {
    "rslora, pissa": LoraConfig(r=3, target_modules="all-linear", use_rslora=True, init_lora_weights="pissa"),
    "lokr": LoKrConfig(r=3, alpha=3, target_modules="all-linear"),
    "adalora": AdaLoraConfig(init_r=3, target_r=2, total_step=100, target_modules="all-linear"),
    "oft": OFTConfig(oft_block_size=4, r=0, target_modules="all-linear"),
    "boft": BOFTConfig(boft_block_size=4, target_modules="all-linear"),
    "hra": HRAConfig(r=2, target_modules="all-linear"),
    "fourierft": FourierFTConfig(n_frequency=20, target_modules="all-linear"),
    "vblora": VBLoRAConfig(r=2, vector_length=8, num_vectors=8, topk=2, target_modules="all-linear"),
    "randlora": RandLoraConfig(r=3, target_modules="all-linear"),
    "shira": ShiraConfig(r=2, target_modules="all-linear"),
    "miss": MissConfig(r=4, target_modules="all-linear"),
    "road": RoadConfig(group_size=4, target_modules="all-linear"),
    "c3a": C3AConfig(block_size=8, target_modules="all-linear"),
}
PHI3 = next(family for family in INTERNVL if "phi3" in family.name)


def adapters(method: str, family: TinyFamily, everywhere: bool) -> PeftConfig:
    """Returns a method's config for all linear layers, or for queries and values. Phi-3 has those in one projection.

    IA3 scales what enters the last projection of an FFN, and what leaves the others.
    """
    names = ["qkv_proj"] if family is PHI3 else ["q_proj", "v_proj"]
    if method == "ia3" and everywhere:
        return METHODS[method](["qkv_proj", "q_proj", "v_proj", "o_proj", "down_proj"], ["down_proj"])
    return METHODS[method]("all-linear" if everywhere else names, [])


def with_adapters(family: TinyFamily, config: PeftConfig) -> PeftModel:
    """Returns a model in training with adapters that do something, float64."""
    model = get_peft_model(family.sparse(PLAN).train(), copy.deepcopy(config)).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.05
    return model


def in_float64(batch: dict) -> dict:
    return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


def reference_loss(model: PeftModel, family: TinyFamily, batch: dict) -> torch.Tensor:
    base = model.get_base_model()
    logits = reference_logits(base, base.visual_plan, batch, layout=family.layout)
    return F.cross_entropy(logits[:-1], batch["labels"][0, 1:])


def train(model: PeftModel, loss_of, num_steps: int) -> tuple[list[float], list[torch.Tensor]]:
    """Returns the loss of each step, and the gradients of each step in one vector."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    losses, gradients = [], []
    for _ in range(num_steps):  # short ones: in long ones what norms and softmax round in float32 would grow
        model.zero_grad()
        loss = loss_of(model)
        loss.backward()
        losses.append(float(loss.detach()))
        found = [torch.zeros_like(one) if one.grad is None else one.grad for one in trained]
        gradients.append(torch.cat([one.flatten() for one in found]))
        with torch.no_grad():
            for one, gradient in zip(trained, found, strict=True):
                one -= gradient * 0.03 / (1 + gradients[-1].norm())
    return losses, gradients


EVERY_RUN = [(LLAVA[2], "lora", True), (PHI3, "dora", False)]
CASES = [
    *(pytest.param(*case, 3, id=f"{case[0].name}-{case[1]}") for case in EVERY_RUN),
    *(
        pytest.param(
            *(family, method, everywhere, 20),
            id=f"{family.name}-{method}-{'everywhere' if everywhere else 'attention'}-20",
            marks=pytest.mark.slow,
        )
        for family in FAMILIES
        for method in METHODS
        for everywhere in (True, False)
    ),
]


@pytest.mark.parametrize("family, method, everywhere, num_steps", CASES)
def test_adapters_learn_what_they_learn_under_the_masked_reference(family, method, everywhere, num_steps, tmp_path):
    config = adapters(method, family, everywhere)
    sample = family.samples(2)[1]
    batch = in_float64(COLLATORS["right"]([sample]))
    ours, reference = with_adapters(family, config), with_adapters(family, config)
    losses, gradients = train(ours, lambda model: model(**batch).loss, num_steps)
    expected, expected_gradients = train(reference, lambda model: reference_loss(model, family, batch), num_steps)
    assert losses[-1] < losses[0]
    assert losses == pytest.approx(expected, rel=1e-4)
    for mine, right in zip(gradients, expected_gradients, strict=True):
        assert float((mine - right).norm() / right.norm()) < 1e-3

    inputs = in_float64(batch_of(family.samples(3)))
    rows = text_rows(ours.get_base_model(), inputs)
    ours.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        learned = ours(**inputs).logits[rows]
        again = PeftModel.from_pretrained(family.sparse(PLAN).double(), tmp_path).double()
        assert relative_error(again(**inputs).logits[rows], learned) < 1e-6
        merged = ours.merge_and_unload()
        assert relative_error(merged(**inputs).logits[rows], learned) < 1e-4
        assert relative_error(family.sparse(PLAN).double()(**inputs).logits[rows], learned) > 1e-2
    decoder = merged.model.language_model
    assert {type(module) for name, module in decoder.named_modules() if name.endswith("_proj")} == {nn.Linear}


@pytest.mark.slow
@pytest.mark.parametrize("family", [LLAVA[2], PHI3], ids=lambda family: family.name)
@pytest.mark.parametrize("name", OTHERS)
def test_other_adapters_give_what_the_masked_reference_gives(family, name):
    model = with_adapters(family, OTHERS[name]).eval()
    base, batch = model.get_base_model(), in_float64(batch_of(family.samples(2)[1:2]))
    rows = text_rows(base, batch)
    with torch.no_grad():
        expected = reference_logits(base, base.visual_plan, batch, layout=family.layout)[rows[0]]
        assert relative_error(model(**batch).logits[rows], expected) < 1e-4
        assert relative_error(family.sparse(PLAN).double()(**batch).logits[rows], expected) > 1e-3


def test_norms_that_a_tool_wraps_are_called_as_they_are():
    """By LN tuning, and by LoRA with norms that are trained in full."""
    family = LLAVA[2]
    norms = ["input_layernorm", "post_attention_layernorm"]
    batch = in_float64(batch_of(family.samples(2)))
    for config in (LNTuningConfig(target_modules=norms), LoraConfig(target_modules=["o_proj"], modules_to_save=norms)):
        model = with_adapters(family, config).eval()
        rows = text_rows(model.get_base_model(), batch)
        with torch.no_grad():
            learned = model(**batch).logits[rows]
            merged = model.merge_and_unload()
            assert relative_error(merged(**batch).logits[rows], learned) < 1e-4
            untrained = family.sparse(PLAN).double()
            assert relative_error(untrained(**batch).logits[rows], learned) > 1e-3
            for layer, trained in zip(
                untrained.model.language_model.layers, merged.model.language_model.layers, strict=True
            ):
                assert not torch.equal(layer.input_layernorm.weight, trained.input_layernorm.weight)


def test_adapters_that_count_rows_are_refused(tmp_path):
    family = LLAVA[2]
    batch = batch_of(family.samples(2))
    lora = {"task_type": "CAUSAL_LM", "target_modules": ["o_proj"]}
    get_peft_model(family.sparse(), LoraConfig(**lora)).save_pretrained(tmp_path)
    a_lora = LoraConfig(**lora, alora_invocation_tokens=[5, 6])
    x_lora = XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, adapters={"0": str(tmp_path)})
    for config, kind in ((a_lora, "aLoRA"), (x_lora, "X-LoRA")):
        model = family.sparse()
        model.config.use_cache = False
        with pytest.raises(UserError, match=f"adapter 'default': got {kind}"):
            get_peft_model(model, config)(**batch)
