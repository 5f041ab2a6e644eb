"""Times prefill and decoding beside those of an earlier commit, in one process, on the same weights.

    python scripts/benchmark_commit.py f0fa145^

`modeling/` of that commit is loaded under another name, and takes turns with the one that is here. A ratio above 1 says
that it is faster now. Times are of this process, so they say what one core does; other work on the machine disturbs a
turn of both. The two must give equal logits.
"""

import argparse
import importlib
import io
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import logging

from modeling.user_error import UserError
from training.cli import run
from training.measure.clock.prompt import Prompt
from training.measure.clock.shapes import CLASS_FIELDS, shape_of_sizes

HERE = Path(__file__).resolve().parents[1]
BEFORE = "modeling_before"
HIDDEN_SIZE, LAYERS, VISUAL_TOKENS, TEXT_TOKENS, NEW_TOKENS = 512, 6, 256, 32, 8
PLANS = {
    "dense": [{}] * LAYERS,
    "heads": [{"heads": 2}] * LAYERS,
    "neurons": [{"ffn": 344}] * LAYERS,
    "layers": [{}] * 2 + [{"attend": False, "ffn": 0}] * (LAYERS - 2),
    "tokens": [{}] * 2 + [{"tokens": 0.25, "rank": {"by": "uniform"}}] + [{"tokens": 0.25}] * (LAYERS - 3),
    "class token": [{"tokens": 0.3, "rank": {"by": "cls_attention"}}] + [{"tokens": 0.3}] * (LAYERS - 1),
}
"""One for each kind of saving: what each layer has."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="as git names it")
    parser.add_argument("--repeats", type=int, default=61, help="turns of each of the two (default 61)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        unpack(arguments.commit, Path(folder))
        sys.path.insert(0, folder)
        before, now = small_llava(BEFORE), small_llava("modeling")
    now.model.load_state_dict(before.model.state_dict(), assign=True)
    print(f"{'':22}{'before':>10}{'now':>10}   before / now, median of {arguments.repeats} pairs (95 % interval)")
    for what in ("prefill", "decode"):
        for name in PLANS:
            print(f"{what:8} {name:12} {compare(before, now, what, name, arguments.repeats)}", flush=True)


def unpack(commit: str, folder: Path) -> None:
    """Writes `modeling/` as it was at a commit.

    Raises:
        UserError: git knows no such commit, or it has no such folder.
    """
    archive = subprocess.run(["git", "-C", str(HERE), "archive", commit, "modeling"], capture_output=True, check=False)
    if archive.returncode != 0:
        raise UserError(f"commit: {commit!r}: {archive.stderr.decode(errors='replace').strip()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    (folder / "modeling").rename(folder / BEFORE)


def small_llava(package: str) -> SimpleNamespace:
    """Returns a `model` with random weights, and the `plan_class`, of a package that is such as `modeling/`."""
    part = {
        name: importlib.import_module(f"{package}.{name}")
        for name in ("configuration_sparse_llava", "modeling_sparse_llava", "visual_plan")
    }
    shape = shape_of_sizes(HIDDEN_SIZE, LAYERS, VISUAL_TOKENS).to_dict()
    values = {name: value for name, value in shape.items() if name not in CLASS_FIELDS}
    torch.manual_seed(0)
    config = part["configuration_sparse_llava"].SparseLlavaConfig.from_dict(values)
    model = part["modeling_sparse_llava"].SparseLlavaForConditionalGeneration(config).eval()
    return SimpleNamespace(model=model, plan_class=part["visual_plan"].VisualPlan)


def compare(before: SimpleNamespace, now: SimpleNamespace, what: str, plan: str, repeats: int) -> str:
    """Returns a line: milliseconds of both, and their ratio.

    Raises:
        UserError: the two give other logits.
    """
    if not torch.equal(seconds_and_logits(before, what, plan)[1], seconds_and_logits(now, what, plan)[1]):
        raise UserError(f"{what}, {plan}: the two commits give other logits, so their times do not compare")
    times: dict[str, list[float]] = {"before": [], "now": []}
    both = [("before", before), ("now", now)]
    for number in range(repeats):
        for name, one in both if number % 2 else both[::-1]:
            times[name].append(seconds_and_logits(one, what, plan)[0])
    ratios = [old / new for old, new in zip(*times.values(), strict=True)]
    draws = random.Random(0)
    medians = sorted(statistics.median(draws.choices(ratios, k=repeats)) for _ in range(1000))
    old, new = (statistics.median(values) * 1000 for values in times.values())
    return f"{old:7.1f} ms{new:7.1f} ms   {statistics.median(ratios):.3f} ({medians[25]:.3f} to {medians[975]:.3f})"


@torch.inference_mode()
def seconds_and_logits(one: SimpleNamespace, what: str, plan: str) -> tuple[float, torch.Tensor]:
    """Returns how long a prefill took, or as many steps of decoding as `NEW_TOKENS` after it, and the last logits."""
    prompt = Prompt.random(one.model, 1, TEXT_TOKENS)
    with one.model.use_plan(one.plan_class.from_dict({"layers": PLANS[plan]})):
        begin = time.process_time()
        output = one.model(input_ids=prompt.input_ids, **prompt.pictures, use_cache=True, logits_to_keep=1)
        if what == "decode":
            begin = time.process_time()
            for _ in range(NEW_TOKENS):
                token = output.logits[:, -1:].argmax(-1)
                output = one.model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        return time.process_time() - begin, output.logits


if __name__ == "__main__":
    run(main)
