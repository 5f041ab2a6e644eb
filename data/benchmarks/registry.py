"""All benchmarks, by name."""

from data.benchmarks.benchmark import Benchmark
from data.benchmarks.captions import CocoCaptions, NoCaps
from data.benchmarks.docvqa import DocVqa
from data.benchmarks.gqa import Gqa
from data.benchmarks.mmbench import MmBenchCn, MmBenchEn
from data.benchmarks.mme import Mme
from data.benchmarks.pope import Pope
from data.benchmarks.scienceqa_img import ScienceQaImg
from data.benchmarks.seed_image import SeedImage
from data.benchmarks.shapes import Shapes
from data.benchmarks.textvqa import TextVqa, TextVqaOcr
from data.benchmarks.vizwiz import VizWiz, VizWizTest
from data.benchmarks.vqav2 import Vqav2, Vqav2TestDev

_ALL = (
    Vqav2,
    Vqav2TestDev,
    Gqa,
    VizWiz,
    VizWizTest,
    ScienceQaImg,
    TextVqa,
    TextVqaOcr,
    Pope,
    Mme,
    MmBenchEn,
    MmBenchCn,
    SeedImage,
    CocoCaptions,
    NoCaps,
    DocVqa,
    Shapes,
)
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark() for benchmark in _ALL}
