"""Reads the messages of a row in each of the layouts of data/sources/schemas.py."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from data.sample import MEDIA, Medium, mark_of
from modeling.user_error import UserError

Role = Literal["system", "user", "assistant"]
ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
"""What speakers are called in files, and in chat templates."""


class Message(NamedTuple):
    """One message of a row."""

    role: Role
    text: str
    """Its text, with a mark for each picture and video."""
    files: Mapping[Medium, tuple[Any, ...]] = MappingProxyType({})
    """The pictures and videos that its parts hold, where the row has no column of them."""


def llava_messages(row: dict) -> list[Message]:
    """Returns the messages of a row with `conversations`."""
    messages = []
    for index, turn in enumerate(_list(row, "conversations")):
        if not (isinstance(turn, dict) and isinstance(turn.get("from"), str) and isinstance(turn.get("value"), str)):
            raise UserError(f"turn {index} is {turn!r:.200}, an object with texts 'from' and 'value' is expected")
        messages.append(Message(_role(turn["from"], index), turn["value"].strip()))
    return messages


def chat_messages(row: dict) -> list[Message]:
    """Returns the messages of a row with `messages`."""
    return _chat(_list(row, "messages"))


def texts_messages(row: dict) -> list[Message]:
    """Returns the messages of a row with `texts`."""
    messages = []
    for index, turn in enumerate(_list(row, "texts")):
        if not isinstance(turn, dict) or not all(isinstance(turn.get(name), str) for name in ("user", "assistant")):
            raise UserError(f"turn {index} is {turn!r:.200}, an object with texts 'user' and 'assistant' is expected")
        messages += [Message("user", turn["user"].strip()), Message("assistant", turn["assistant"].strip())]
    return messages


def prompt_messages(row: dict) -> list[Message]:
    """Returns the messages of a row with `prompt` and `completion`."""
    messages = []
    for column, role in (("prompt", "user"), ("completion", "assistant")):
        value = row.get(column)
        messages += _chat([{"role": role, "content": value}] if isinstance(value, str) else _list(row, column))
    return messages


def _list(row: dict, column: str) -> list:
    if column not in row:
        raise UserError(f"no key {column!r}; got {sorted(row)}")
    if not isinstance(row[column], list):
        raise UserError(f"{column!r} is {type(row[column]).__name__}, a list is expected")
    return row[column]


def _role(name: Any, index: int) -> Role:
    if not isinstance(name, str) or name not in ROLES:
        raise UserError(f"turn {index} is from {name!r:.200}, allowed are {', '.join(map(repr, ROLES))}")
    return ROLES[name]


def _chat(turns: Sequence[Any]) -> list[Message]:
    messages = []
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict) or "role" not in turn or "content" not in turn:
            raise UserError(f"turn {index} is {turn!r:.200}, an object with 'role' and 'content' is expected")
        if turn.get("tool_calls"):
            raise UserError(f"turn {index} has 'tool_calls', which are not read")
        text, files = _content(turn["content"], index)
        messages.append(Message(_role(turn["role"], index), text.strip(), files))
    return messages


def _content(content: Any, index: int) -> tuple[str, dict[Medium, tuple[Any, ...]]]:
    """Returns a message's content, a text or a list of typed parts, as text with marks and the files in parts."""
    if isinstance(content, str):
        return content, {}
    if not isinstance(content, list):
        raise UserError(f"turn {index}: 'content' is {type(content).__name__}, a text or a list of parts is expected")
    texts: list[str] = []
    files: dict[Medium, list[Any]] = {medium: [] for medium in MEDIA}
    for part in content:
        medium = next((medium for medium in MEDIA if _is_part_of(part, medium)), None)
        if medium is not None:
            texts.append(mark_of(medium))
            files[medium] += [part[name] for name in (medium, "path") if _is_given(part.get(name))]
        elif isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise UserError(
                f'turn {index}: a part is {part!r:.200}, allowed: {{"type": "text", "text": …}}, {{"type": "image"}} '
                'and {"type": "video"}, with the file as "image" or "video", or as "path", or for the next one of the '
                "row's images or videos"
            )
    return "\n".join(texts), {medium: tuple(found) for medium, found in files.items()}


def _is_part_of(part: Any, medium: Medium) -> bool:
    """Returns whether a typed part shows a picture or a video, and says nothing of it that is not read."""
    if not isinstance(part, dict) or part.get("type") != medium:
        return False
    if medium == "image":
        return not any(part.get(name) for name in ("url", "base64"))
    # A video's part may say which frames are to be seen, in many words.
    return not any(_is_given(value) for name, value in part.items() if name not in ("type", medium, "path", "index"))


def _is_given(value: Any) -> bool:
    """Returns whether a field of a part is given. `datasets` gives every part every field, some of them empty."""
    return any(value.values()) if isinstance(value, dict) else bool(value)
