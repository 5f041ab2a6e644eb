"""Gates under ZeRO-2 and ZeRO-3 learn what they learn without DeepSpeed: in fp32, on any rank, and after a kill."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from data.collator import AllMediaInEveryBatch
from tests.processes import run_processes
from tests.tiny_student import single_samples, tiny_batch
from tests.training.gates.test_trainer import COLLATOR, Kill, trainer
from training.distillation.callbacks import read_metrics
from training.gates.trainer import GateTrainer
from training.recipe.file import RECIPES

pytestmark = pytest.mark.slow

# Every third sample has no picture. With one sample in a micro-batch, some steps have a picture on one rank only.
DATASET = [
    {name: value if name == "pixel_values" else value[0] for name, value in sample.items()}
    for sample in single_samples(tiny_batch((0, 1, 2) * 4))
]
STEPS = 5
"""So many that the target of the cost becomes final, and the linear multiplier learns."""
LOGGED = ("loss", "cost", "target", "cross_entropy", "forward_kl")


class BFloat16Gates(GateTrainer):
    """What DeepSpeed would do to gates that are parameters of its model."""

    def _change_gates(self):
        super()._change_gates()
        for parameter in self.gates.parameters():
            parameter.data = parameter.data.bfloat16().float()


class ZeroStage(TrainerCallback):
    """Which stage of ZeRO has the adapters while they are trained, from what it leaves on them."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        adapter = next(value for name, value in model.named_parameters() if "lora_A" in name)
        self.seen = 3 if hasattr(adapter, "ds_tensor") else 2 if hasattr(adapter, "_hp_mapping") else None


def begin(folder: Path, stage: int | None, *callbacks: TrainerCallback, cls=GateTrainer, **training) -> GateTrainer:
    values = {
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "deepspeed": None if stage is None else str(RECIPES / "deepspeed" / f"zero{stage}.json"),
    }
    collator = AllMediaInEveryBatch(COLLATOR, [DATASET[1]])
    return trainer(folder, STEPS, callbacks, cls=cls, dataset=DATASET, collator=collator, **values | training)


def learned(folder: Path, stage: int | None, **changes) -> tuple[list[dict], dict[str, list]]:
    """Trains to the end. Returns the log, and gates and multipliers."""
    zero = ZeroStage()
    one = begin(folder, stage, zero, **changes)
    one.train()
    assert zero.seen == stage
    assert {value.dtype for value in one.gates.parameters()} == {torch.float32}
    one.save_model(str(folder / "weights"))
    log = [{name: row[name] for name in LOGGED} for row in read_metrics(folder / "metrics.jsonl") if "cost" in row]
    return log, {name: value.tolist() for name, value in one.gates.named_parameters()}


def without_zero(folder: Path) -> list:
    """What one process learns without DeepSpeed: with gates as they are, and with gates of bfloat16."""
    return [learned(folder / cls.__name__, None, cls=cls) for cls in (GateTrainer, BFloat16Gates)]


def with_zero(folder: Path, stage: int) -> list:
    """What one process learns in one go, after a kill, and with a model of bfloat16."""
    whole = learned(folder / "whole", stage)
    with pytest.raises(KeyboardInterrupt):
        begin(folder / "killed", stage, Kill()).train()
    bfloat16 = learned(folder / "bfloat16", stage, precision="bfloat16", dtype=torch.bfloat16)
    return [whole, learned(folder / "killed", stage), bfloat16]


def assert_same(one: tuple, other: tuple, rel: float = 1e-4) -> None:
    for name in LOGGED:
        logged, expected = ([row[name] for row in log] for log, _ in (one, other))
        assert len(logged) == STEPS and logged == pytest.approx(expected, rel=rel, abs=1e-6), name
    for name, value in one[1].items():
        torch.testing.assert_close(torch.tensor(value), torch.tensor(other[1][name]), rtol=rel, atol=1e-4, msg=name)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> list:
    return run_processes(2, without_zero, tmp_path_factory.mktemp("without"))


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_learns_the_same_gates_and_goes_on_with_them_after_a_kill(stage, reference, tmp_path):
    ranks = run_processes(2, with_zero, tmp_path, stage)
    assert ranks[0] == ranks[1], "ranks hold other gates"
    whole, killed, bfloat16 = ranks[0]
    assert_same(whole, reference[0][0])
    assert_same(killed, whole)
    assert [row["cost"] for row in bfloat16[0]] == pytest.approx([row["cost"] for row in whole[0]], rel=0.02)
    assert bfloat16 != whole
    of_killed, of_whole = (
        load_file(tmp_path / name / "weights" / "adapter_model.safetensors") for name in ("killed", "whole")
    )
    assert of_whole and all(value.numel() for value in of_whole.values()), "adapters were saved in parts"
    for name, value in of_whole.items():
        torch.testing.assert_close(of_killed[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_gates_of_bfloat16_would_be_noticed(reference):
    exact, rounded = reference[0]
    with pytest.raises(AssertionError):
        assert_same(rounded, exact)
