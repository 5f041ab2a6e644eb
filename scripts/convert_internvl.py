"""Turns an InternVL2 as published (4B, 8B or 26B) into a folder that stock transformers loads. No remote code is run.

python scripts/convert_internvl.py --model InternVL2-8B --output checkpoints/internvl2-8b
"""

import argparse
from pathlib import Path

from checkpoints.internvl.convert import convert_internvl
from training import cli
from training.files import writing


def main() -> None:
    args = parse_args()
    with writing(args.output):
        convert_internvl(args.model, args.output)
    print(f"written: {args.output}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="folder of the published model, as downloaded")
    parser.add_argument("--output", required=True, type=Path, help="folder to write; absent or empty")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
