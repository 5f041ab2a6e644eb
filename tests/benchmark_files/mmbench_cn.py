"""MMBench's Chinese dev part, with the questions of the English one."""

from pathlib import Path

from tests.benchmark_files.mmbench_en import BASES as ENGLISH
from tests.benchmark_files.mmbench_en import write_parquet, write_tsv

TEXTS = {
    241: {"question": "这是什么颜色？", "options": ["蓝色", "深红色", "红色", "绿色"]},
    252: {"question": "它是“圆”的吗？", "options": ["是", "否"]},
    300: {"hint": "人们在晚上睡觉。", "question": "这是什么时候拍的？", "options": ["晚上", "中午", "从不"]},
}
BASES = [base | TEXTS[base["index"]] for base in ENGLISH]


def write_llava(folder: Path) -> None:
    write_tsv(folder / "mmbench_dev_cn_20231003.tsv", BASES)


def write_hub(folder: Path) -> None:
    write_parquet(folder / "cn", BASES)
