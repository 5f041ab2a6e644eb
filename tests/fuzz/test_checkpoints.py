"""Checkpoints that strangers broke. Each loads or is refused in one line, no code runs, no file outside is touched."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from checkpoints.build import build_student, dense_on_meta, load_dense, starting_plan
from checkpoints.internvl.convert import convert_internvl
from checkpoints.load import load_checkpoint
from modeling.visual_plan import VisualPlan
from tests.checkpoints.internvl.published_internvl import write_published
from tests.checkpoints.tiny_dense import NUM_LAYERS, tiny_dense
from tests.families.internvl import INTERNVL
from tests.families.llava_next import LLAVA_NEXT
from tests.families.qwen2_vl import QWEN2_VL
from tests.fuzz.broken_checkpoints import break_at_random, copy_checkpoint
from tests.fuzz.children import Outcome, in_child

ROOT = Path(__file__).parents[2]
CASES, IN_A_BATCH, SAMPLE = 800, 20, 12
MOST_CHARACTERS = 480


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    """Folders of whole checkpoints, by kind."""
    root = tmp_path_factory.mktemp("bases")
    shutil.copytree(ROOT / "checkpoints" / "tiny-llava", root / "llava")
    dense, processor = tiny_dense()
    plan = VisualPlan.dense(NUM_LAYERS).replace(0, heads=1, ffn=5).replace(1, tokens=0.5, attend=False)
    for part in (build_student(dense, plan), processor):
        part.save_pretrained(root / "sparse")
    for name, family in (("llava_next", LLAVA_NEXT[0]), ("qwen2_vl", QWEN2_VL), ("internvl", INTERNVL[0])):
        for part in (family.dense(), family.processor()):
            part.save_pretrained(root / name)
    write_published(root / "published", "Phi3ForCausalLM", "300M")
    return {folder.name: folder for folder in root.iterdir()}


def load(kind: str, folder: Path) -> None:
    """What all our doors do with a checkpoint of this kind."""
    if kind == "published":
        convert_internvl(folder, folder.parent / "converted")
        return
    if kind == "sparse":
        starting_plan(folder)
        load_dense(folder, "auto", or_sparse=True)
    else:
        dense_on_meta(folder / "config.json")
    load_checkpoint(folder, "auto")


def case(bases: dict[str, Path], number: int, place: Path) -> tuple[str, Outcome, Path]:
    """Makes and runs the case of a number. Returns what was broken, how it ended and where files may lie."""
    rng = random.Random(number)
    kind = rng.choice(["llava"] * 4 + ["sparse"] * 4 + ["published"] * 2 + ["llava_next", "qwen2_vl", "internvl"])
    own, outside = place / "own", place / "outside"
    for folder in (own, outside):
        folder.mkdir(parents=True)
    (outside / "secret.json").write_text("{}")
    save_file({"lm_head.weight": torch.zeros(1)}, outside / "secret.safetensors")
    copy_checkpoint(bases[kind], own / "checkpoint")
    broken, must_be_refused = break_at_random(own / "checkpoint", outside, rng)
    outcome = in_child(lambda: load(kind, own / "checkpoint"), own)
    if must_be_refused and kind != "published" and outcome.kind == "accepted":  # whose other files nobody reads
        outcome = Outcome("traceback", "silently accepted", outcome.seen)
    return f"case {number}, {kind}: {broken}", outcome, outside


def complaint(name: str, outcome: Outcome, outside: Path) -> str | None:
    """What a case did that it must not; None if nothing."""
    if outcome.kind in ("traceback", "killed"):
        return f"{name}: {outcome.kind}: {outcome.text[-1500:]}"
    if outcome.seen or sorted(file.name for file in outside.iterdir()) != ["secret.json", "secret.safetensors"]:
        return f"{name}: {outcome.seen or 'wrote outside'}"
    message = outcome.text
    if outcome.kind == "refused" and not (message.isprintable() and len(message) < MOST_CHARACTERS):
        return f"{name}: not one line of up to {MOST_CHARACTERS}: {message[:1000]!r}"
    return None


def run(bases: dict[str, Path], numbers: range, place: Path) -> list[str]:
    complaints = []
    for number in numbers:
        folder = place / str(number)
        found = complaint(*case(bases, number, folder))
        shutil.rmtree(folder)
        complaints += [found] if found else []
    return complaints


@pytest.mark.fuzz
@pytest.mark.parametrize("first", range(0, CASES, IN_A_BATCH))
def test_a_broken_checkpoint_loads_or_is_refused_in_one_line(bases, tmp_path, first):
    complaints = run(bases, range(first, first + IN_A_BATCH), tmp_path)
    assert not complaints, "\n\n".join(complaints)


@pytest.mark.fuzz
def test_whole_checkpoints_load(bases):
    for kind, folder in bases.items():
        assert in_child(lambda kind=kind, folder=folder: load(kind, folder), folder.parent).kind == "accepted", kind


def test_a_sample_of_broken_checkpoints(bases, tmp_path):
    complaints = run(bases, range(CASES, CASES + SAMPLE), tmp_path)
    assert not complaints, "\n\n".join(complaints)
