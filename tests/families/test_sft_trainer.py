"""TRL's SFTTrainer with adapters of peft, on an exported checkpoint and samples with pictures.

TRL is not a dependency. It is tested where it is installed.
"""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from checkpoints.export import write_model, write_processor
from modeling.visual_plan import VisualPlan
from tests.families.family import TinyFamily, batch_of, relative_error
from tests.families.internvl import INTERNVL
from tests.families.llava import LLAVA
from tests.families.llava_next import LLAVA_NEXT
from tests.families.qwen2_vl import QWEN2_VL

trl = pytest.importorskip("trl", reason="trl is not installed (pip install trl)")
pytestmark = pytest.mark.slow

STEPS = 5
DENSE = VisualPlan.dense(3)
PLAN = DENSE.replace(0, heads=1, ffn=5, radius=1).replace(1, heads=1, ffn=7).replace(2, tokens=0.0)
FAMILIES = (LLAVA[0], LLAVA_NEXT[2], QWEN2_VL, INTERNVL[1])
COLOURS = ("red", "green", "blue", "yellow")


def conversations() -> Dataset:
    """Of one picture each. What is learned is the answer alone."""
    return Dataset.from_list(
        [
            {
                "images": [Image.new("RGB", (48, 32), colour)],
                "prompt": [{"role": "user", "content": "what colour is the picture ?"}],
                "completion": [{"role": "assistant", "content": colour}],
            }
            for colour in COLOURS
        ]
    )


def tune(model: PreTrainedModel, folder: Path) -> "trl.SFTTrainer":
    """Trains adapters on every linear layer. All else is as TRL has it, checkpointed layers included."""
    arguments = trl.SFTConfig(
        output_dir=str(folder / "trl"),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        max_length=None,
    )
    torch.manual_seed(0)
    trainer = trl.SFTTrainer(
        model,
        args=arguments,
        train_dataset=conversations(),
        processing_class=AutoProcessor.from_pretrained(folder, trust_remote_code=True),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
    )
    trainer.train()
    return trainer


def losses(trainer: "trl.SFTTrainer") -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_checkpoint_is_tuned(family: TinyFamily, tmp_path):
    """Under the dense plan as the stock model. Under a narrow plan other losses fall, and adapters merge."""
    found = {}
    for name, plan in (("dense", DENSE), ("narrow", PLAN)):
        sparse = family.sparse(plan)
        write_processor(family.processor(), type(sparse).processor_class, tmp_path)
        write_model(sparse, tmp_path)
        trainer = tune(AutoModelForImageTextToText.from_pretrained(tmp_path, trust_remote_code=True), tmp_path)
        found[name] = losses(trainer)
    stock = losses(tune(family.dense(), tmp_path))
    assert len(stock) == STEPS and found["dense"] == pytest.approx(stock, rel=1e-4)
    assert found["narrow"] != pytest.approx(stock, rel=1e-3)
    assert found["narrow"][-1] < found["narrow"][0]

    model, batch = trainer.model.eval(), batch_of(family.samples(1))
    with torch.no_grad():
        learned = model(**batch).logits
        assert relative_error(family.sparse(PLAN)(**batch).logits, learned) > 1e-2
        assert relative_error(model.merge_and_unload()(**batch).logits, learned) < 1e-4
