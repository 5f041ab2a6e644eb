"""Looks at a DeepSpeed config as far as that can be done without DeepSpeed, which takes seconds to import."""

from typing import Any

from data.texts.json_text import parse_json
from modeling.user_error import UserError

MOST_CHARACTERS = 2**18
"""Characters of a file."""
BATCHES = ("train_batch_size", "train_micro_batch_size_per_gpu")
"""Fields of which DeepSpeed needs one. The recipe fills in what is `auto`."""
STAGES = (0, 1, 2, 3)


def check_deepspeed(path: str) -> None:
    """Raises UserError if a file is no DeepSpeed config."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
    except (OSError, ValueError) as error:  # ValueError: its name cannot be one, or it is no text
        raise UserError(
            f"no file {path!r:.100} that can be read ({error.strerror if isinstance(error, OSError) else error})"
        ) from None
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"{path}: more than {MOST_CHARACTERS} characters, a DeepSpeed config is expected")
    try:
        _check(parse_json(text))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _check(config: Any) -> None:
    """Raises UserError where what a file says is no DeepSpeed config."""
    if not isinstance(config, dict):
        raise UserError(f"got {type(config).__name__}, a DeepSpeed config is an object")
    zero = config.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise UserError(f"zero_optimization: got {zero!r}, allowed: an object with a stage")
    stage = zero.get("stage", 0)
    if isinstance(stage, bool) or stage not in STAGES:
        raise UserError(f"zero_optimization.stage: got {stage!r}, allowed: {', '.join(map(str, STAGES))}")
    batches = {name: config[name] for name in BATCHES if name in config}
    if not batches:
        raise UserError(f"no DeepSpeed config: one of {', '.join(BATCHES)} must be given, such as 'auto'")
    for name, size in batches.items():
        if size != "auto" and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise UserError(f"{name}: got {size!r}, allowed: 'auto', or an integer of 1 or more")
