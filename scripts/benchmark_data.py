"""Measures how fast rows are indexed, and what a process that reads an index takes.

    python scripts/benchmark_data.py
    python scripts/benchmark_data.py --rows 20000 --model checkpoints/tiny-llava

The rows are made up: conversations of five turns, of questions of up to 16 words and answers of up to 8, about small
pictures, of which ten rows share one. Memory is that of a fresh process, libraries included, with its samples drawn.
"In use" it has also ordered an epoch by length and modality, and fetched the tokens of 1,000 samples. Compare it with
that of a process that reads an index of a single row.
"""

import argparse
import json
import multiprocessing
import os
import random
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import psutil
from PIL import Image
from rich.console import Console

from data.index.build import build_indexes
from data.index.index import open_indexes
from data.mixture import build_mixture
from data.sources.reading import open_source
from data.sources.source import Source
from modeling.user_error import UserError
from training.cli import run
from training.distillation.sample_order import GroupedOrder
from training.distillation.students import dense_processor
from training.recipe.model import ModelSettings

TURNS, QUESTION_WORDS, ANSWER_WORDS, ROWS_OF_A_PICTURE = 5, 16, 8, 10
WORDS = (
    "what",
    "which",
    "how",
    "many",
    "is",
    "there",
    "a",
    "the",
    "red",
    "green",
    "blue",
    "square",
    "left",
    "of",
    "in",
)
FETCHED = 1_000


class Read(NamedTuple):
    """What a process measured that reads an index."""

    seconds: float
    """From the index's path to a dataset."""
    memory: int
    """Bytes of the whole process then, but for pages of files, which the system may take back."""
    memory_in_use: int
    """The same once it has ordered an epoch and fetched tokens."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the largest source (default 200000)")
    parser.add_argument("--model", default="checkpoints/tiny-llava", help="whose processor encodes")
    arguments = parser.parse_args()
    if arguments.rows < 1:
        raise UserError(f"--rows: got {arguments.rows}, allowed: 1 or more")
    model = ModelSettings(path=arguments.model, dtype="float32")
    print_line = Console(soft_wrap=True).print
    with TemporaryDirectory() as name:
        os.environ["HF_DATASETS_CACHE"] = name
        for rows in dict.fromkeys((1, max(1, arguments.rows // 100), arguments.rows)):
            source = write_rows(Path(name) / str(rows), rows)
            print_line(index_and_read(source, model, rows))


def write_rows(folder: Path, count: int) -> Source:
    """Writes made-up rows and their pictures, and gives them as a source."""
    folder.mkdir()
    rng = random.Random(0)

    def words(most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))

    for number in range(-(-count // ROWS_OF_A_PICTURE)):
        size = rng.randint(60, 120), rng.randint(60, 120)
        Image.new("RGB", size, (number % 256, 0, 0)).save(folder / f"{number}.png")
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            turns = [
                {"from": speaker, "value": words(most)}
                for _ in range(TURNS)
                for speaker, most in (("human", QUESTION_WORDS), ("gpt", ANSWER_WORDS))
            ]
            turns[0]["value"] = "<image>\n" + turns[0]["value"]
            row = {"id": str(number), "image": f"{number // ROWS_OF_A_PICTURE}.png", "conversations": turns}
            file.write(json.dumps(row) + "\n")
    return Source(path=folder / "rows.jsonl", images=folder)


def index_and_read(source: Source, model: ModelSettings, rows: int) -> str:
    """Returns a line of figures."""
    processor = dense_processor(model)
    start = time.perf_counter()
    open_source(source)
    opened = time.perf_counter()
    (path,) = build_indexes([source], processor, source.path.parent / "data", decode=True)
    indexed = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        read = pool.apply(read_index, (source, model, path))
    return (
        f"{rows:,} rows: {rows / (indexed - start):,.0f} rows/s ({opened - start:.1f} s to read the file, "
        f"{indexed - opened:.1f} s to index it on {os.cpu_count()} cores), {path.stat().st_size / rows:,.0f} bytes a "
        f"row on the disk; opened again in {read.seconds:.2f} s by a process of {read.memory / 2**20:,.0f} "
        f"MiB, {read.memory_in_use / 2**20:,.0f} MiB in use"
    )


def read_index(source: Source, model: ModelSettings, path: Path) -> Read:
    """Reads an index as a training does."""
    processor = dense_processor(model)
    start = time.perf_counter()
    dataset, _ = build_mixture(open_indexes([source], [path]), processor, max_length=2048, seed=0)
    seconds = time.perf_counter() - start
    memory = own_memory()
    for index in list(GroupedOrder(dataset.lengths, dataset.has_picture, 128, 0, lambda: 0))[:FETCHED]:
        dataset.tokens(index)
    return Read(seconds, memory, own_memory())


def own_memory() -> int:
    """Returns the bytes of this process, but for pages of files."""
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared


if __name__ == "__main__":
    run(main)
