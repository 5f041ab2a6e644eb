"""All benchmarks, by name."""

from data.benchmarks.benchmark import Benchmark
from data.benchmarks.shapes import Shapes

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in (Shapes(),)}
