"""Gates under ZeRO-2 and ZeRO-3 learn what they learn without DeepSpeed: in fp32, on any rank, and after a kill."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests.processes import run_processes
from tests.tiny_student import single_samples, tiny_batch
from tests.training.gates.test_trainer import Kill, trainer
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


class BFloat16Gates(GateTrainer):
    """What DeepSpeed would do to gates that are parameters of its model."""

    def _change_gates(self):
        super()._change_gates()
        for parameter in self.gates.parameters():
            parameter.data = parameter.data.bfloat16().float()


class Wrapped(TrainerCallback):
    """Which stage of ZeRO has the adapters while they are trained, from what it leaves on them."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        adapter = next(value for name, value in model.named_parameters() if "lora_A" in name)
        self.zero_stage = 3 if hasattr(adapter, "ds_tensor") else 2 if hasattr(adapter, "_hp_mapping") else None


def learn(folder: Path, stage: int | None, cls: type[GateTrainer] = GateTrainer, killed: bool = False, **training):
    """One process of a training. Returns its log, and its gates and multipliers."""
    values = {
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "deepspeed": None if stage is None else str(RECIPES / "deepspeed" / f"zero{stage}.json"),
    }

    def begin(*callbacks: TrainerCallback) -> GateTrainer:
        return trainer(folder, STEPS, callbacks, cls=cls, dataset=DATASET, **values | training)

    if killed:
        with pytest.raises(KeyboardInterrupt):
            begin(Kill()).train()
    seen = Wrapped()
    one = begin(seen)
    one.train()
    one.save_model(str(folder / "weights"))
    log = [row for row in read_metrics(folder / "metrics.jsonl") if "cost" in row]
    gates = {name: value.tolist() for name, value in one.gates.named_parameters()}
    assert {value.dtype for value in one.gates.parameters()} == {torch.float32}
    assert seen.zero_stage == stage
    return log, gates


def difference(one: list, other: list) -> float:
    """The largest difference of gates and multipliers between two trainings."""
    return max(
        float((torch.tensor(value) - torch.tensor(other[0][1][name])).abs().max()) for name, value in one[0][1].items()
    )


def assert_same_training(one: list, other: list) -> None:
    for name in ("loss", "cost", "target", "cross_entropy", "forward_kl"):
        logged, expected = ([row[name] for row in training[0][0]] for training in (one, other))
        assert len(logged) == STEPS and logged == pytest.approx(expected, rel=1e-4, abs=1e-6), name
    assert difference(one, other) < 1e-4


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """The reference: two processes, no DeepSpeed."""
    return run_processes(2, learn, tmp_path_factory.mktemp("without"), None)


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_learns_the_same_gates_and_goes_on_with_them_after_a_kill(stage, without, tmp_path):
    whole = run_processes(2, learn, tmp_path / "whole", stage)
    assert_same_training(whole, without)
    assert whole[0] == whole[1], "ranks hold other gates"
    killed = run_processes(2, learn, tmp_path / "killed", stage, GateTrainer, True)
    assert_same_training(killed, whole)
    kept, expected = (
        load_file(tmp_path / name / "weights" / "adapter_model.safetensors") for name in ("killed", "whole")
    )
    for name, value in expected.items():
        torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert len(expected) == 42 and all(value.numel() for value in expected.values())


def test_gates_of_bfloat16_would_be_noticed(without, tmp_path):
    rounded = run_processes(2, learn, tmp_path, None, BFloat16Gates)
    assert difference(rounded, without) > 1e-3
    with pytest.raises(AssertionError):
        assert_same_training(rounded, without)
