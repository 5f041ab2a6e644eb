"""The names of all benchmarks, for whoever needs no more than these (data/benchmarks/registry.py has the rest)."""

from typing import Literal

BenchmarkName = Literal[
    "vqav2",
    "vqav2_testdev",
    "gqa",
    "vizwiz",
    "vizwiz_test",
    "scienceqa_img",
    "textvqa",
    "textvqa_ocr",
    "pope",
    "mme",
    "mmbench_en",
    "mmbench_cn",
    "seed_image",
    "coco_captions",
    "nocaps",
    "docvqa",
    "shapes",
]
