"""Pictures, videos and texts are trained on together: on two processes, whatever each of them is shown in a step."""

from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from data.collator import AllMediaInEveryBatch
from modeling.visual_plan import VisualPlan
from tests.families.family import COLLATORS
from tests.families.qwen2_vl import QWEN2_VL
from tests.processes import run_processes
from training.distillation.arguments import training_arguments
from training.distillation.callbacks import read_metrics
from training.distillation.lora import add_lora
from training.distillation.narrow_projections import put_narrow_projections
from training.distillation.trainer import DistillationTrainer
from training.recipe.distillation import DistillationSettings
from training.recipe.file import RECIPES
from training.recipe.lora import LoraSettings
from training.recipe.training import TrainingSettings

pytestmark = pytest.mark.slow
STEPS = 3


def of_each_modality() -> list[dict]:
    """Text alone, a picture and a video, pictures alone, and a video alone, some of each."""
    text, both, pictures = QWEN2_VL.samples(0)
    video = {name: value for name, value in both.items() if "image" not in name and name != "pixel_values"}
    image = QWEN2_VL.config().image_token_id
    kept = both["input_ids"] != image
    video |= {name: both[name][kept] for name in ("input_ids", "labels")}
    return [text, video, both, pictures, video, text, pictures, both, text, pictures, video, text]


def losses(folder: Path, stage: int | None) -> list[float]:
    samples = of_each_modality()
    settings = TrainingSettings(
        max_steps=STEPS,
        micro_batch_size=1,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        warmup_ratio=0.0,
        logging_steps=1,
        precision="float32",
        deepspeed=None if stage is None else str(RECIPES / "deepspeed" / f"zero{stage}.json"),
        report_to=(),
    )
    plan = VisualPlan.dense(3).replace(0, heads=(1,), ffn=5)
    student = QWEN2_VL.sparse(plan)
    put_narrow_projections(student)
    student = add_lora(student, LoraSettings(rank=2, alpha=4))
    zero = Zero()
    DistillationTrainer(
        model=student,
        args=training_arguments(settings, folder, seed=0, name="student"),
        train_dataset=samples,
        data_collator=AllMediaInEveryBatch(COLLATORS["right"], [samples[3], samples[1]]),
        distillation=DistillationSettings(cross_entropy_weight=0.5, forward_kl_weight=1.0),
        callbacks=[zero],
    ).train()
    assert zero.is_divided == (stage == 3)
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]


class Zero(TrainerCallback):
    """Whether ZeRO-3 has divided the weights of the model."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.is_divided = any(hasattr(value, "ds_tensor") for value in model.parameters())


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_learns_what_is_learned_without_it(tmp_path, stage):
    expected = run_processes(2, losses, tmp_path / "without", None)
    found = run_processes(2, losses, tmp_path / "with", stage)
    assert len(found[0]) == STEPS and found[0] == pytest.approx(expected[0], rel=1e-4)
    assert expected[0][0] != expected[0][1] and torch.tensor(expected[0]).isfinite().all()
