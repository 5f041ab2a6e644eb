"""Prints how much of the training batches is padding, in random order and grouped by length and modality.

    python scripts/padding.py
    python scripts/padding.py --recipe tiny_sparse.yaml
    python scripts/padding.py --recipe llava_sparse.yaml --processes 8 data.train.0.path=... data.train.0.images=...

With a recipe it reads the recipe's training data, and needs the dense model's processor. Without one it draws lengths
at random. They are made up. Like LLaVA-1.5's stage-2 mixture they have 576 visual tokens a picture, one text in sixteen
without a picture, and answers from one word to pages. `training.group_by_modality_length` chooses the order.
"""

import argparse
import random
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console

from modeling.user_error import UserError
from training.cli import run
from training.distillation.sample_order import GroupedOrder, SampleOrder

VISUAL_TOKENS, LONGEST = 576, 2048
# Share of the samples, visual tokens, median of the text tokens, and standard deviation of their logarithm.
KINDS = (
    (0.40, VISUAL_TOKENS, 60, 0.6),  # short answers, several to a picture
    (0.30, VISUAL_TOKENS, 140, 0.6),  # regions and texts in pictures
    (0.24, VISUAL_TOKENS, 280, 0.5),  # conversations and descriptions
    (0.06, 0, 700, 0.8),  # text alone
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", help="a YAML file, or the name of one in recipes/; default: lengths made up")
    parser.add_argument("--processes", type=int, default=8, help="processes of the training (default 8)")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="overrides a field of the recipe")
    return parser.parse_intermixed_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.processes < 1:
        raise UserError(f"--processes: got {arguments.processes}, allowed: 1 or more")
    if arguments.overrides and arguments.recipe is None:
        raise UserError(f"{arguments.overrides[0]}: it overrides a field of a recipe, and --recipe is not given")
    micro_batch_size, accumulation = 8, 2
    if arguments.recipe is None:
        lengths, has_picture = made_up_samples(66_530, random.Random(0))
    else:
        from training.distillation.datasets import index_data, mixture
        from training.distillation.students import dense_processor
        from training.recipe import load_recipe

        recipe = load_recipe(arguments.recipe, arguments.overrides)
        processor = dense_processor(recipe.model)
        with TemporaryDirectory() as folder:
            index_data(recipe, processor, Path(folder))
            dataset = mixture(recipe, "train", processor, Path(folder))
            lengths, has_picture = dataset.lengths, dataset.has_picture
            if dataset.has_video.any():
                raise UserError("data.train: it has videos, allowed: pictures and texts, whose padding is counted")
        micro_batch_size = recipe.training.micro_batch_size
        accumulation = recipe.training.gradient_accumulation_steps
    step_samples = micro_batch_size * accumulation * arguments.processes
    orders = {
        "random": SampleOrder(len(lengths), 0, lambda: 0),
        "group_by_modality_length": GroupedOrder(lengths, has_picture, step_samples, 0, lambda: 0),
    }
    filled = arguments.processes > 1 and 0 < has_picture.sum() < len(lengths)
    print_line = Console(soft_wrap=True).print
    print_line(
        f"{len(lengths):,} samples, {1 - has_picture.mean():.0%} without a picture, of "
        f"{lengths.mean():.0f} tokens on average; {arguments.processes} processes, micro-batches of "
        f"{micro_batch_size}, {accumulation} to a step"
    )
    for name, order in orders.items():
        print_line(f"{name}: {padding_share(order, lengths, has_picture, micro_batch_size, filled):.1%} is padding")


def made_up_samples(count: int, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Returns the number of tokens of each sample, [count] int64, and whether it has a picture, [count] bool."""
    lengths, has_picture = [], []
    for _, visual_tokens, median, deviation in rng.choices(KINDS, [kind[0] for kind in KINDS], k=count):
        text = max(20, round(median * rng.lognormvariate(0, deviation)))
        lengths.append(min(visual_tokens + text, LONGEST))
        has_picture.append(visual_tokens > 0)
    return np.array(lengths), np.array(has_picture)


def padding_share(
    order: Iterable[int], lengths: np.ndarray, has_picture: np.ndarray, micro_batch_size: int, filled: bool
) -> float:
    """Returns the share of the token slots of all micro-batches that hold no token of a sample.

    Args:
        filled: whether a batch without a picture gets one more row that has one (`data.collator.AllMediaInEveryBatch`).
            That row counts as padding.
    """
    indices = list(order)
    filler = lengths[has_picture].min() if filled else 0
    slots = 0
    for start in range(0, len(indices), micro_batch_size):
        batch = indices[start : start + micro_batch_size]
        rows = lengths[batch].tolist()
        if filled and not has_picture[batch].any():
            rows.append(int(filler))
        slots += len(rows) * max(rows)
    return float(1 - lengths.sum() / slots)


if __name__ == "__main__":
    run(main)
