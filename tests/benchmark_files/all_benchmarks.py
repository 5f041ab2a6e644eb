"""The small files of all benchmarks in one folder, as `playground/data/eval` or an owner on the Hub has them."""

from importlib import import_module
from pathlib import Path

from data.benchmarks.registry import BENCHMARKS

WRITERS = {"vqav2_testdev": "vqav2", "vizwiz_test": "vizwiz", "textvqa_ocr": "textvqa"}
"""Benchmarks that lie in another's files -> what writes those."""
ONLY_ON_HUB = ("coco_captions", "nocaps", "docvqa", "vqav2", "vizwiz")
"""Benchmarks that LLaVA's layout has not, or has without true answers."""


def public(layout: str) -> list[str]:
    """Names of the benchmarks that a layout has."""
    return [name for name in BENCHMARKS if name != "shapes" and (layout == "hub" or name not in ONLY_ON_HUB)]


def write_all(folder: Path, layout: str) -> Path:
    """Writes all benchmarks that a layout has, each into its folder, and returns `folder`."""
    places = {
        WRITERS.get(name, name): folder / BENCHMARKS[name].folders[0 if layout == "llava" else -1]
        for name in public(layout)
    }
    for name, place in places.items():
        getattr(import_module(f"tests.benchmark_files.{name}"), f"write_{layout}")(place)
    return folder
