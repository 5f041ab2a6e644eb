"""A forward waits for its device no more often than the stock model's, whatever the plan. So does a training step."""

import pytest
import torch

from modeling.neighbor_attention import neighbor_tiles
from modeling.visual_layout import VisualTokens
from modeling.visual_plan import VisualPlan
from tests.families.family import COLLATORS, TinyFamily, batch_of
from tests.families.internvl import INTERNVL
from tests.families.llava import LLAVA
from tests.families.llava_next import LLAVA_NEXT
from tests.families.qwen2_vl import QWEN2_VL
from tests.waits import DEVICE, Waits, on_device, on_host
from training.distillation.arguments import training_arguments
from training.distillation.lora import add_lora
from training.distillation.trainer import DistillationTrainer
from training.recipe.distillation import DistillationSettings
from training.recipe.lora import LoraSettings
from training.recipe.training import TrainingSettings

FAMILIES = (LLAVA[0], LLAVA_NEXT[0], QWEN2_VL, INTERNVL[0])
PLANS = {
    "dense": VisualPlan.dense(3),
    "tokens fall in every layer": VisualPlan.from_dict(
        {
            "layers": [
                {"tokens": 0.7, "rank": {"by": "random"}},
                {"tokens": 0.5, "rank": {"by": "text_attention", "rows": "instruction"}, "radius": 1},
                {"tokens": 0.3, "rank": {"by": "image_attention"}},
            ]
        }
    ),
}
MORE = 2
"""How many waits more than the stock model's are allowed."""

families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def prefill(model, batch) -> tuple[int, torch.Tensor]:
    """Returns how often a prefill waits, and its logits."""
    with torch.no_grad(), Waits() as waits:
        logits = on_device(model)(**on_device(batch)).logits
    return waits.count, on_host(logits)


@families
def test_a_prefill_waits_no_more_than_the_stock_models(family: TinyFamily):
    batch = batch_of(family.samples(2))
    stock, _ = prefill(family.dense(), family.stock_inputs(batch))
    assert stock > 0
    for plan in PLANS.values():
        with torch.no_grad():
            expected = family.sparse(plan)(**batch).logits
        found, logits = prefill(family.sparse(plan), batch)
        assert found <= stock + MORE
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)  # the device is only pretended


@families
def test_a_step_of_distillation_waits_no_more_than_the_stock_models(family: TinyFamily, tmp_path):
    """The whole step, with the teacher's forward and the gradients, against one forward and its gradients."""
    batch = COLLATORS["right"](family.samples(2))
    dense = on_device(family.dense())
    with Waits() as stock:
        dense(**on_device(family.stock_inputs(batch))).loss.backward()
    counts = [distillation_waits(family, plan, batch, tmp_path) for plan in PLANS.values()]
    assert max(counts) <= stock.count + MORE
    assert counts[0] == counts[1], "it depends on the plan"


def distillation_waits(family: TinyFamily, plan: VisualPlan, batch: dict, folder) -> int:
    training = TrainingSettings(
        max_steps=1,
        micro_batch_size=1,
        learning_rate=1e-3,
        warmup_ratio=0.0,
        precision="float32",
        deepspeed=None,
        report_to=(),
    )
    trainer = DistillationTrainer(
        model=add_lora(family.sparse(plan), LoraSettings(rank=2, alpha=4)).train(),
        args=training_arguments(training, folder, seed=0, name="student"),
        distillation=DistillationSettings(cross_entropy_weight=0.5, forward_kl_weight=0.5, jsd_weight=0.5),
    )
    model, inputs = on_device(trainer.model), on_device(batch)
    with Waits() as waits:
        loss = trainer.compute_loss(model, inputs, num_items_in_batch=on_device(torch.tensor(4)))
        loss.backward()
    adapters = [value for name, value in model.named_parameters() if "lora_B" in name]
    assert any(on_host(value.grad).any() for value in adapters if value.grad is not None)
    return waits.count


def test_a_look_at_the_device_is_seen(monkeypatch):
    """The test above can fail: a look where tokens fall counts once for each layer in which they do."""
    batch, survivors = batch_of(LLAVA[0].samples(2)), VisualTokens.survivors
    plan = PLANS["tokens fall in every layer"]
    before, _ = prefill(LLAVA[0].sparse(plan), batch)

    def looked(tokens, *arguments):
        kept = survivors(tokens, *arguments)
        assert kept[0].valid.any()
        return kept

    monkeypatch.setattr(VisualTokens, "survivors", looked)
    assert prefill(LLAVA[0].sparse(plan), batch)[0] == before + 3


def test_tiles_are_cut_without_a_look():
    grid, row, column = torch.zeros(1, 64, dtype=torch.long), torch.arange(64)[None] // 8, torch.arange(64)[None] % 8
    with Waits() as waits:
        tiles = neighbor_tiles([[(8, 8)]], *on_device([grid, row, column]), 1, False)
    expected = neighbor_tiles([[(8, 8)]], grid, row, column, 1, False)
    assert waits.count == 0 and torch.equal(on_host(tiles.allowed), expected.allowed)


@pytest.mark.parametrize(
    "count, operation",
    [
        (1, lambda x, mask: x.sum().item()),
        (1, lambda x, mask: x.tolist()),
        (1, lambda x, mask: x.cpu()),
        (1, lambda x, mask: bool(mask.any())),
        (1, lambda x, mask: f"{x.sum()}"),
        (1, lambda x, mask: x[mask]),
        (1, lambda x, mask: mask.nonzero()),
        (1, lambda x, mask: x.unique()),
        (1, lambda x, mask: x.masked_select(mask)),
        (1, lambda x, mask: x.repeat_interleave(x)),
        (1, lambda x, mask: torch.equal(x, x)),
        (1, lambda x, mask: torch.tensor([1, 2], device=x.device)),
        (1, lambda x, mask: torch.arange(4).to(x.device)),
        (4, lambda x, mask: torch.tensor(list(x))),
        (0, lambda x, mask: torch.arange(4).to(x.device, non_blocking=True)),
        (0, lambda x, mask: torch.arange(4).sum().item()),
        (0, lambda x, mask: torch.arange(4, device=x.device) + x),
        (0, lambda x, mask: x.repeat_interleave(x, output_size=6)),
        (0, lambda x, mask: x.masked_scatter(mask, x)),
        (0, lambda x, mask: torch.where(mask, x, 0)[x].gather(0, x).sort()),
    ],
)
def test_what_waits_is_counted(count, operation):
    x, mask = on_device([torch.arange(4), torch.arange(4) > 1])
    assert x.device == DEVICE
    with Waits() as waits:
        operation(x, mask)
    assert waits.count == count, waits.where


def test_what_lies_elsewhere_is_refused():
    with Waits(), pytest.raises(AssertionError, match="lie on the host"):
        on_device(torch.arange(4)) + torch.arange(4)
