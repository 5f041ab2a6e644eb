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
from transformers import CLIPVisionConfig, LlamaConfig, logging

from modeling.user_error import UserError
from training.cli import run

HERE = Path(__file__).resolve().parents[1]
BEFORE = "modeling_before"
LAYERS, SIDE, PATCH, TEXT_TOKENS, IMAGE_TOKEN, NEW_TOKENS = 6, 16, 14, 32, 3, 8
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
        before, now = tiny_llava(BEFORE), tiny_llava("modeling")
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


def tiny_llava(package: str) -> SimpleNamespace:
    """Returns a `model` with random weights, and the `plan_class`, of a package that is such as `modeling/`."""
    part = {
        name: importlib.import_module(f"{package}.{name}")
        for name in ("configuration_sparse_llava", "modeling_sparse_llava", "visual_plan")
    }
    torch.manual_seed(0)
    config = part["configuration_sparse_llava"].SparseLlavaConfig(
        text_config=LlamaConfig(
            hidden_size=512,
            intermediate_size=1376,
            num_hidden_layers=LAYERS,
            num_attention_heads=8,
            num_key_value_heads=8,
            vocab_size=1000,
        ),
        vision_config=CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=PATCH * SIDE,
            patch_size=PATCH,
        ),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=SIDE**2,
        vision_feature_layer=-1,
    )
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


@torch.no_grad()
def seconds_and_logits(one: SimpleNamespace, what: str, plan: str) -> tuple[float, torch.Tensor]:
    """Returns how long a prefill took, or as many steps of decoding as `NEW_TOKENS` after it, and the last logits."""
    draws = torch.Generator().manual_seed(0)
    input_ids = torch.randint(IMAGE_TOKEN + 1, 1000, (1, TEXT_TOKENS + SIDE**2), generator=draws)
    input_ids[0, TEXT_TOKENS // 4 : TEXT_TOKENS // 4 + SIDE**2] = IMAGE_TOKEN
    pixels = torch.randn(1, 3, PATCH * SIDE, PATCH * SIDE, generator=draws)
    mask = torch.ones_like(input_ids)
    with one.model.use_plan(one.plan_class.from_dict({"layers": PLANS[plan]})):
        begin = time.process_time()
        output = one.model(
            input_ids=input_ids, attention_mask=mask, pixel_values=pixels, use_cache=True, logits_to_keep=1
        )
        if what == "decode":
            cache, token = output.past_key_values, torch.tensor([[IMAGE_TOKEN + 2]])
            begin = time.process_time()
            for _ in range(NEW_TOKENS):
                mask = torch.cat([mask, torch.ones_like(token)], dim=1)
                output = one.model(input_ids=token, attention_mask=mask, past_key_values=cache, use_cache=True)
        return time.process_time() - begin, output.logits


if __name__ == "__main__":
    run(main)
