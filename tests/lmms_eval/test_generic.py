"""lmms-eval's generic class, `--model huggingface`, answers with exported checkpoints of every family."""

import json
from pathlib import Path

import pytest
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from PIL import Image

from checkpoints.export import export_checkpoint
from modeling.visual_plan import VisualPlan
from scripts.sparsify import probe_batch
from tests.families.family import TinyFamily
from tests.families.internvl import INTERNVL
from tests.families.llava import LLAVA
from tests.families.llava_next import LLAVA_NEXT
from tests.families.qwen2_vl import QWEN2_VL

pytestmark = pytest.mark.slow

FAMILIES = [LLAVA[0], LLAVA_NEXT[0], QWEN2_VL, INTERNVL[2]]
"""Not INTERNVL[0]: beyond its length, dynamic RoPE depends on the longest prompt of a batch, as in the stock class."""
PLAN = VisualPlan.dense(3).replace(0, heads=1, ffn=5).replace(1, attend=False)
QUESTIONS = ("what is this", "what colour is the circle in the picture", "is there a red square", "how many")
GENERIC = {"trust_remote_code": True, "device_map": "", "device": "cpu"}
OURS = {"dtype": "bfloat16", "device": "cpu"}  # the generic class knows no other type


def documents() -> list[dict]:
    """Questions of different lengths about pictures of different sizes. The pictures are the same at every call."""
    gradient = Image.radial_gradient("L").convert("RGB")
    return [
        {"question": question, "image": gradient.resize((60, 30 + 10 * number)).rotate(30 * number)}
        for number, question in enumerate(QUESTIONS)
    ]


def messages(document: dict) -> list[dict]:
    """A document as lmms-eval's tasks give it to a chat model: the picture first."""
    picture = {"type": "image", "url": document["image"]}
    return [{"role": "user", "content": [picture, {"type": "text", "text": document["question"]}]}]


def ask(name: str, checkpoint: Path, batch_size: int, **arguments) -> list[str]:
    """The answers of lmms-eval's model `name` to the documents."""
    model = get_model(name)(pretrained=str(checkpoint), batch_size=batch_size, **arguments)
    model.task_dict = {"task": {"test": documents()}}
    settings = {"max_new_tokens": 6, "temperature": 0}
    requests = [
        Instance(
            request_type="generate_until",
            arguments=(question, messages, settings, number, "task", "test"),
            idx=0,
            metadata={"task": "task", "doc_id": number, "repeats": 1},
        )
        for number, question in enumerate(QUESTIONS)
    ]
    return [getattr(answer, "text", answer).strip() for answer in model.generate_until(requests)]


def exported(family: TinyFamily, folder: Path) -> Path:
    processor = family.processor()
    export_checkpoint(family.sparse(PLAN), processor, folder, card="", probe=probe_batch(processor))
    return folder


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_batches_do_not_change_answers(family: TinyFamily, tmp_path):
    checkpoint = exported(family, tmp_path / "checkpoint")
    alone = ask("huggingface", checkpoint, 1, **GENERIC)
    assert ask("huggingface", checkpoint, 2, **GENERIC) == alone
    assert ask("squint", checkpoint, 1, **OURS) == ask("squint", checkpoint, 3, **OURS) == alone
    assert len(set(alone)) > 1, "answers depend on what is asked"


def test_right_padding_is_noticed(tmp_path):
    """Negative control: a checkpoint whose tokenizer pads on the right, as many do."""
    checkpoint = exported(LLAVA[0], tmp_path / "checkpoint")
    alone = ask("huggingface", checkpoint, 1, **GENERIC)
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "right"}))
    assert ask("huggingface", checkpoint, 2, **GENERIC) != alone
    assert ask("squint", checkpoint, 2, **OURS) == alone
