"""JSON files of a model's folder, as the user has them."""

import json
from pathlib import Path

from modeling.user_error import UserError


def read_json(path: Path) -> dict:
    """Returns the JSON object in a file.

    Raises:
        UserError: there is no such file, or it does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: got {type(content).__name__}, expected a JSON object")
    return content
