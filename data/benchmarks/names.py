"""The names of all benchmarks, for whoever needs no more than these (data/benchmarks/registry.py has the rest)."""

from typing import Literal

BenchmarkName = Literal["pope", "shapes"]
