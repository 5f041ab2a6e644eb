"""What a dry run assumes of the devices and of the data, neither of which it looks at. Torch is not imported."""

import argparse
import os
import re
from dataclasses import dataclass

from modeling.user_error import UserError

UNITS = {"GiB": 2**30, "GB": 10**9, "MiB": 2**20, "MB": 10**6}
OPTIONS = ("processes", "device_memory", "device_flops", "rows", "text_tokens")
"""The options, as attributes of the parsed arguments."""


@dataclass(frozen=True)
class Assumptions:
    """What is assumed unless the command line says otherwise."""

    processes: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of processes, one per device, for which figures are given."""
    device_memory: float = 80 * 2**30
    """Bytes of memory of one device."""
    device_flops: float = 4e14
    """FLOP/s that one device reaches: 40 % of the 989e12 dense bfloat16 FLOP/s in the data sheet of an H100 SXM."""
    rows: int | None = None
    """Rows of the training data. None takes them from the recipe, if it says how many."""
    text_tokens: int = 512
    """Text tokens of a sample, in the mean. All are taken as supervised."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a dry run to a command line."""
    default = Assumptions()
    group = parser.add_argument_group("with --dry-run, which reads no data and looks at no device")
    group.add_argument("--processes", help="number of processes, one per device (default: the launcher's, or 1,2,4,8)")
    group.add_argument("--device-memory", metavar="80GiB", help="memory of a device (default 80GiB)")
    group.add_argument(
        "--device-flops", metavar="4e14", help="FLOP/s that a device reaches (default 4e14, 40 %% of an H100's peak)"
    )
    group.add_argument("--rows", help="rows of the training data, where the recipe does not say how many")
    group.add_argument(
        "--text-tokens", help=f"text tokens of a sample, in the mean (default {default.text_tokens}, which is a guess)"
    )


def assumptions(arguments: argparse.Namespace) -> Assumptions:
    """Returns what a command line assumes.

    Raises:
        UserError: an option has no value that makes sense, or it is given without --dry-run.
    """
    given = {name: getattr(arguments, name) for name in OPTIONS if getattr(arguments, name) is not None}
    if given and not arguments.dry_run:
        option = "--" + next(iter(given)).replace("_", "-")
        raise UserError(f"{option}: goes with --dry-run; a run itself takes its processes from the launcher")
    values: dict = {name: _number(name, text, whole=name != "device_flops") for name, text in given.items()
                    if name not in ("processes", "device_memory")}  # fmt: skip
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if "processes" in given:
        values["processes"] = tuple(_number("processes", part, whole=True) for part in given["processes"].split(","))
    elif launched > 1:
        values["processes"] = (launched,)
    if "device_memory" in given:
        values["device_memory"] = _memory(given["device_memory"])
    return Assumptions(**values)


def _number(name: str, text: str, *, whole: bool) -> float:
    """Returns the number that an option gives. Raises UserError unless it is positive, and whole if it must be."""
    try:
        value = float(text)
        if 0 < value < float("inf") and (not whole or value == int(value)):
            return int(value) if whole else value
    except ValueError:
        pass
    kind = "a whole number" if whole else "a number"
    raise UserError(f"--{name.replace('_', '-')}: got {text!r}, allowed: {kind} above 0")


def _memory(text: str) -> float:
    """Returns the bytes that a size such as 80GiB stands for. Raises UserError if it is none."""
    match = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]+)", text)
    if match is None or match[2] not in UNITS:
        raise UserError(
            f"--device-memory: got {text!r}, allowed: a number and a unit ({', '.join(UNITS)}), as in 80GiB"
        )
    return _number("device_memory", match[1], whole=False) * UNITS[match[2]]
