"""A checkpoint whose weights another tool divides: transformers' own Trainer under ZeRO-3."""

from pathlib import Path

import deepspeed
import pytest
import torch
from transformers import AutoModelForImageTextToText, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import unset_hf_deepspeed_config

from checkpoints.export import write_model
from modeling.layer_plan import Rank
from modeling.visual_plan import VisualPlan
from tests.families.family import COLLATORS, TinyFamily, with_telling_class_token
from tests.families.internvl import INTERNVL
from tests.families.qwen2_vl import QWEN2_VL
from tests.processes import run_processes
from training.compiled_ops import compile_no_inference_op
from training.recipe.file import RECIPES

pytestmark = pytest.mark.slow

STEPS = 4
PLAN = VisualPlan.dense(3).replace(0, heads=(1,), ffn=(3, 20, 7)).replace(1, heads=1, ffn=5)
BY_CLASS_TOKEN = PLAN.replace(2, tokens=0.6, rank=Rank(by="cls_attention"))
PHI3 = next(family for family in INTERNVL if "phi3" in family.name)


class Divided(TrainerCallback):
    """Whether ZeRO-3 has divided the decoder's weights while they are trained."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.seen = any(hasattr(value, "ds_tensor") and not value.numel() for value in model.parameters())


def kinds(sample: dict) -> set[str]:
    """What a sample shows: pictures, videos, both or nothing."""
    return {"pixel_values", "pixel_values_videos"} & sample.keys()


def losses(folder: Path, family: TinyFamily, divided: bool) -> list[float]:
    """Trains the checkpoint in `folder`. Returns the loss of each step."""
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=STEPS,
        per_device_train_batch_size=1,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        deepspeed=str(RECIPES / "deepspeed" / "zero3.json") if divided else None,
    )
    if divided:
        compile_no_inference_op()
        deepspeed.init_distributed("gloo")  # as the launcher does
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    model.requires_grad_(False)
    model.model.language_model.requires_grad_(True)
    # Each with pictures alone: under ZeRO-3 all processes must call the tower equally often, which is the tool's part.
    samples = [sample for seed in range(8) for sample in family.samples(seed) if kinds(sample) == {"pixel_values"}]
    zero = Divided()
    trainer = Trainer(
        model=model, args=arguments, train_dataset=samples, data_collator=COLLATORS["right"], callbacks=[zero]
    )
    trainer.train()
    assert zero.seen == divided
    unset_hf_deepspeed_config()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def without_and_with(folder: Path, family: TinyFamily) -> list[list[float]]:
    return [losses(folder, family, divided) for divided in (False, True)]


@pytest.mark.parametrize(
    ("family", "plan"),
    [(QWEN2_VL, PLAN), (PHI3, PLAN), (PHI3, BY_CLASS_TOKEN)],
    ids=["qwen2_vl", "phi3", "class_token"],
)
def test_zero_3_trains_a_checkpoint_as_it_is_trained_without(family: TinyFamily, plan: VisualPlan, tmp_path):
    write_model(with_telling_class_token(family.sparse(plan)), tmp_path)
    AutoModelForImageTextToText.from_pretrained(tmp_path, trust_remote_code=True)  # copies the code once for all
    expected, found = run_processes(2, without_and_with, tmp_path, family)[0]
    assert len(found) == STEPS and found == pytest.approx(expected, rel=1e-4)
    assert expected[0] != expected[-1] and torch.tensor(expected).isfinite().all()
