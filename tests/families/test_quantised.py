"""A checkpoint is quantised as the stock model is: its decoder takes as little memory, and its logits are as good.

The libraries are not dependencies. Each is tested where it is installed.
"""

from importlib.util import find_spec

import pytest
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, QuantoConfig, TorchAoConfig

from modeling.visual_plan import VisualPlan
from tests.families.family import COLLATORS, TinyFamily, as_batch, batch_of, relative_error, text_rows
from tests.families.test_families import FAMILIES
from tests.modeling.masked_reference import reference_logits

PLAN = VisualPlan.dense(3).replace(0, heads=(1,), ffn=(3, 20, 7)).replace(1, heads=1, ffn=5)


def torchao(name: str) -> TorchAoConfig:
    import torchao.quantization

    return TorchAoConfig(getattr(torchao.quantization, name)())


METHODS = {
    "bitsandbytes 8": ("bitsandbytes", lambda: BitsAndBytesConfig(load_in_8bit=True)),
    "bitsandbytes 4": ("bitsandbytes", lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")),
    "torchao weights": ("torchao", lambda: torchao("Int8WeightOnlyConfig")),
    "torchao activations": ("torchao", lambda: torchao("Int8DynamicActivationInt8WeightConfig")),
    "quanto 8": ("optimum.quanto", lambda: QuantoConfig(weights="int8")),
    "quanto 4": ("optimum.quanto", lambda: QuantoConfig(weights="int4")),
}
methods = pytest.mark.parametrize(
    "method",
    [
        pytest.param(make, id=name, marks=pytest.mark.skipif(not _installed, reason=f"{library} is not installed"))
        for name, (library, make) in METHODS.items()
        for _installed in [bool(find_spec(library.split(".")[0]) and find_spec(library))]
    ],
)
families = pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, id=family.name, marks=[] if "phi3" in family.name else [pytest.mark.slow])
        for family in FAMILIES
    ],
)


def quantised(model: PreTrainedModel, method, folder) -> PreTrainedModel:
    model.save_pretrained(folder)
    return (
        type(model).from_pretrained(folder, quantization_config=method(), dtype=torch.float32, device_map="cpu").eval()
    )


def num_bytes(decoder: nn.Module) -> int:
    """Memory of a decoder's layers, as the tools' tensors hold their values and scales."""
    tensors = [*decoder.layers.parameters(), *decoder.layers.buffers()]
    parts = [
        [getattr(one, name) for name in one.__tensor_flatten__()[0]] if hasattr(one, "__tensor_flatten__") else [one]
        for one in tensors
    ]
    return sum(part.untyped_storage().nbytes() for of_one in parts for part in of_one)


@methods
@families
def test_it_is_quantised_as_the_stock_model(family: TinyFamily, method, tmp_path):
    batch = batch_of(family.samples(2))
    dense, open_plan, narrow = family.dense(), family.sparse(), family.sparse(PLAN)
    rows = text_rows(narrow, batch)
    of_dense, of_open, of_narrow = (
        quantised(model, method, tmp_path / name)
        for name, model in (("dense", dense), ("open", open_plan), ("narrow", narrow))
    )
    decoders = [model.model.language_model for model in (of_dense, of_open, of_narrow)]
    assert num_bytes(decoders[0]) == num_bytes(decoders[1]) == num_bytes(decoders[2])
    assert num_bytes(decoders[0]) < num_bytes(dense.model.language_model) / 2
    with torch.no_grad():
        stock = family.stock_inputs(batch)
        exact = dense(**stock).logits[rows]
        error = relative_error(of_dense(**stock).logits[rows], exact)
        assert error > 1e-3, "nothing is quantised"
        assert relative_error(of_open(**batch).logits[rows], exact) < 2 * error
        expected = [
            reference_logits(of_narrow, narrow.visual_plan, as_batch(sample), layout=family.layout)[
                text_rows(narrow, as_batch(sample))[0]
            ]
            for sample in family.samples(2)
        ]
        found = of_narrow(**batch).logits[rows]
    assert relative_error(found, torch.cat(expected)) < 2 * error


@pytest.mark.skipif(not find_spec("bitsandbytes"), reason="bitsandbytes is not installed")
@families
def test_adapters_on_quantised_weights_learn(family: TinyFamily, tmp_path):
    """QLoRA: losses and gradients are those of the masked reference on the same quantised weights."""
    _, method = METHODS["bitsandbytes 4"]
    model = prepare_model_for_kbit_training(
        quantised(family.sparse(PLAN), method, tmp_path), use_gradient_checkpointing=False
    )
    model = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        nn.init.normal_(parameter, std=0.1)
    base, batch = model.get_base_model(), COLLATORS["right"](family.samples(2)[1:2])
    logits = reference_logits(base, base.visual_plan, batch, layout=family.layout)
    losses = [model(**batch).loss, nn.functional.cross_entropy(logits[:-1], batch["labels"][0, 1:])]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
    gradients = [
        torch.cat([one.flatten() for one in torch.autograd.grad(loss, trained, materialize_grads=True)])
        for loss in losses
    ]
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 1e-3
