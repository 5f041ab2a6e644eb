"""A thousand answers and a thousand training steps take no more memory than the first two hundred of them."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import TrainerCallback

from tests.families.family import COLLATORS, PAD, TinyFamily, batch_of, sample_of, with_telling_class_token
from tests.families.internvl import INTERNVL
from tests.families.llava import LLAVA
from tests.families.llava_next import LLAVA_NEXT
from tests.families.qwen2_vl import QWEN2_VL
from tests.families.test_threads import AT_ONCE, PLANS
from training.distillation.arguments import training_arguments
from training.distillation.lora import add_lora
from training.distillation.trainer import DistillationTrainer
from training.recipe.distillation import DistillationSettings
from training.recipe.lora import LoraSettings
from training.recipe.training import TrainingSettings

MEASURED = (200, 1000)
"""After which calls or steps memory is measured."""
FEW = (20, 60)
"""The same, where a leak is to be seen."""
TENSORS_MARGIN, BYTES_MARGIN = 8, 64 * 2**10
"""By how much the tensors of one batch may be more, and larger, than those of another one."""
RESIDENT_MARGIN = 24 * 2**20
"""Bytes by which the process may grow. The trainer's log has a row of 1 KiB a step; 32 KiB a call would be more."""
STATM = Path("/proc/self/statm")

slow_families = pytest.mark.parametrize(
    "family", [LLAVA[0], LLAVA_NEXT[0], QWEN2_VL, INTERNVL[0]], ids=lambda family: family.name
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not STATM.exists(), reason="the system does not tell how much memory a process holds"),
]


class Held(NamedTuple):
    """What the process holds.

    Attributes:
        tensors: number of tensors that are alive.
        bytes: of their storages.
        resident: bytes of the process in memory.
    """

    tensors: int
    bytes: int
    resident: int


def held() -> Held:
    gc.collect()
    alive = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in alive}
    return Held(len(alive), sum(storages.values()), int(STATM.read_text().split()[1]) * 4096)


def assert_flat(first: Held, last: Held) -> None:
    assert last.tensors - first.tensors < TENSORS_MARGIN, (first, last)
    assert last.bytes - first.bytes < BYTES_MARGIN, (first, last)
    assert last.resident - first.resident < RESIDENT_MARGIN, (first, last)


def prompts(family: TinyFamily) -> list[dict]:
    """Batches of different lengths and numbers of pictures, text alone among them."""
    long = sample_of([1, *(20 + number % 30 for number in range(90))])
    made = [batch_of([sample], "left") for seed in range(4) for sample in family.samples(seed)]
    return [*made, batch_of(family.samples(5), "left"), batch_of([long], "left"), batch_of([long] * 3, "left")]


def generating(family: TinyFamily) -> Callable[[int], None]:
    """A function that answers the prompt of a number, under the model's plan or another one."""
    own = PLANS["rank by last"] if family is QWEN2_VL else AT_ONCE
    model, asked = with_telling_class_token(family.sparse(own)), prompts(family)
    plans = [own, PLANS["heads"], PLANS["neighbours"], PLANS["rank by image"], PLANS["withdrawn"]]

    def answer(number: int) -> None:
        with model.use_plan(plans[number % len(plans)]):
            model.generate(
                **asked[number % len(asked)], max_new_tokens=1 + number % 4, do_sample=False, pad_token_id=PAD
            )

    return answer


def after_calls(call: Callable[[int], None], measured: tuple[int, int] = MEASURED) -> list[Held]:
    found = []
    for number in range(1, max(measured) + 1):
        call(number)
        if number in measured:
            found.append(held())
    return found


@slow_families
def test_of_generation(family: TinyFamily):
    assert_flat(*after_calls(generating(family)))


def test_a_leak_of_generation_is_seen():
    """Negative control: one small tensor is kept of each answer."""
    answer, kept = generating(LLAVA[0]), []

    def leaking(number: int) -> None:
        answer(number)
        kept.append(torch.zeros(8))

    with pytest.raises(AssertionError, match="tensors="):
        assert_flat(*after_calls(leaking, FEW))


class Measured(TrainerCallback):
    """What is held after two of the steps.

    Args:
        steps: their numbers.
        leaks: whether a gradient of each step is kept.
    """

    def __init__(self, steps: tuple[int, int], leaks: bool):
        self.found: list[Held] = []
        self.steps, self.leaks, self.kept = steps, leaks, []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.leaks:
            self.kept.append(next(value.grad for value in model.parameters() if value.grad is not None).clone())

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            self.found.append(held())


def after_steps(
    folder: Path, family: TinyFamily, measured: tuple[int, int] = MEASURED, leaks: bool = False
) -> list[Held]:
    plan = PLANS["rank by last"] if family is QWEN2_VL else AT_ONCE
    student = add_lora(with_telling_class_token(family.sparse(plan)), LoraSettings(rank=2, alpha=4))
    settings = TrainingSettings(
        max_steps=max(measured),
        micro_batch_size=2,
        learning_rate=1e-4,
        warmup_ratio=0.0,
        precision="float32",
        deepspeed=None,
        logging_steps=1,
        report_to=(),
    )
    callback = Measured(measured, leaks)
    DistillationTrainer(
        model=student,
        args=training_arguments(settings, folder, seed=0, name="student"),
        train_dataset=[sample for seed in range(6) for sample in family.samples(seed)],
        data_collator=COLLATORS["right"],
        distillation=DistillationSettings(cross_entropy_weight=0.5, forward_kl_weight=1.0),
        callbacks=[callback],
    ).train()
    return callback.found


@slow_families
def test_of_training(family: TinyFamily, tmp_path):
    assert_flat(*after_steps(tmp_path, family))


def test_a_leak_of_training_is_seen(tmp_path):
    """Negative control: one gradient is kept of each step."""
    with pytest.raises(AssertionError, match="tensors="):
        assert_flat(*after_steps(tmp_path, LLAVA[0], FEW, leaks=True))
