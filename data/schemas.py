"""The layouts in which people keep conversations about pictures, and how a row of each is read.

| schema | columns | turns |
|---|---|---|
| llava | `conversations`, `image` | `{"from": "human" or "gpt", "value": text}` (arXiv 2304.08485) |
| messages | `messages`, `images` | `{"role": "user" or "assistant", "content": text or typed parts}` |
| texts | `texts`, `images` | `{"user": text, "assistant": text}`, as the_cauldron and FineVision |
| prompt | `prompt`, `completion`, `images` | one question and its answer, as texts or as lists of messages |

`image` and `images` mean the same: one picture, a list of them, or none. Each `<image>` mark in a question stands for
the next picture. Where a schema but llava has pictures and no mark, the pictures stand before the first question.

What would change a row's meaning and is not read here makes the row bad: it is never trained without it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, NoneType
from typing import Any, Literal, NamedTuple

from modeling.user_error import UserError

IMAGE_MARK = "<image>"
OTHER_MARKS = ("<video>", "<audio>")
"""Marks of what is not read."""
NOT_READ = ("video", "videos", "audio", "audios", "tools", "objects", "rejected", "rejected_response")
"""Columns that would change a row's meaning."""
PICTURE_COLUMNS = ("image", "images")

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
    """Its text, with a mark for each picture."""
    pictures: tuple[Any, ...] = ()
    """The pictures that its parts hold, where the row has no column of pictures."""


@dataclass(frozen=True)
class Row:
    """A row of any schema.

    Attributes:
        id: its id, or None if it has none.
        pictures: its pictures as the row names them. Each mark in a question stands for the next one.
        turns: (question, answer) pairs, in order.
        family: the family of questions that says how its answers are scored.
        system: what a system message says.
    """

    id: str | None
    pictures: tuple[Any, ...]
    turns: tuple[tuple[str, str], ...]
    family: str | None = None
    system: str | None = None


@dataclass(frozen=True)
class Schema:
    """A layout of rows.

    Attributes:
        name: its name.
        columns: the columns that a file of this schema must have.
        messages: reads the messages of a row.
        needs_marks: whether each picture must have a mark.
    """

    name: str
    columns: tuple[str, ...]
    messages: Callable[[dict], list[Message]]
    needs_marks: bool = False


def schema_of(columns: Iterable[str]) -> Schema:
    """Returns the schema of a file by its columns.

    Raises:
        UserError: they fit no schema, or several.
    """
    found = sorted(set(columns))
    fitting = [schema for schema in SCHEMAS if set(schema.columns) <= set(found)]
    if len(fitting) == 1:
        return fitting[0]
    allowed = "; ".join(f"{schema.name}: {', '.join(schema.columns)}" for schema in SCHEMAS)
    which = " and ".join(schema.name for schema in fitting) or "none"
    raise UserError(f"columns: got {', '.join(found) or 'none'}, which fit {which} of the schemas, allowed: {allowed}")


def read_row(row: dict, schema: Schema, min_ratings: Mapping[str, float] = MappingProxyType({})) -> Row | None:
    """Returns a row that was checked as far as its text goes.

    Args:
        min_ratings: columns of ratings, one for each (question, answer) pair -> the least one. Pairs below it are left
            out, as are pairs without a rating.

    Returns:
        The row; None if none of its pairs is left.

    Raises:
        UserError: the message says what is wrong with the row.
    """
    for name in NOT_READ:
        if row.get(name):
            raise UserError(f"{name!r} is given, which is not read; what the row says would change without it")
    row_id, family = row.get("id"), row.get("family")
    if row_id is not None and not isinstance(row_id, (str, int)):
        raise UserError(f"'id' is {type(row_id).__name__}, a text is expected")
    if family is not None and not isinstance(family, str):
        raise UserError(f"'family' is {type(family).__name__}, a text is expected")
    messages = schema.messages(row)
    pictures = _pictures(row, tuple(picture for message in messages for picture in message.pictures))
    for index, message in enumerate(messages):
        _check_text(f"turn {index}", message)
    system = [message.text for message in messages if message.role == "system"]
    given = row.get("system")
    if given is not None and not isinstance(given, str):
        raise UserError(f"'system' is {type(given).__name__}, a text is expected")
    if given and given.strip():
        _check_text("'system'", Message("system", given))
        system.insert(0, given.strip())
    if len(system) > 1 or any(message.role == "system" for message in messages[1:]):
        raise UserError(
            "a system message stands behind the first message, or there are several; one, at first, is allowed"
        )
    turns = _turns([message for message in messages if message.role != "system"])
    reaching = [_reaching(column, row.get(column), least, len(turns)) for column, least in min_ratings.items()]
    turns = tuple(turn for index, turn in enumerate(turns) if all(column[index] for column in reaching))
    if not turns:
        return None
    num_marks = sum(question.count(IMAGE_MARK) for question, _ in turns)
    if num_marks == 0 and pictures and not schema.needs_marks:
        question, answer = turns[0]
        turns = ((IMAGE_MARK * len(pictures) + "\n" + question, answer), *turns[1:])
    elif num_marks != len(pictures):
        raise UserError(
            f"{num_marks} {IMAGE_MARK} marks for {len(pictures)} images, as many marks as images are expected"
        )
    return Row(None if row_id is None else str(row_id), pictures, turns, family, system[0] if system else None)


def _pictures(row: dict, in_parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the pictures that a row names, or that parts of its messages hold, in order. None is looked at."""
    given = [name for name in PICTURE_COLUMNS if row.get(name) not in (None, [], "")]
    if len(given) > 1:
        raise UserError("both 'image' and 'images' are given, one of them is expected")
    if given and in_parts:
        raise UserError(f"both {given[0]!r} and parts of messages hold pictures, one of them is expected")
    if not given:
        return in_parts
    value = row[given[0]]
    pictures = value if isinstance(value, list) else [value]
    if not all(isinstance(picture, (str, bytes, dict)) for picture in pictures):
        raise UserError(f"{given[0]!r} is {value!r:.100}, a picture or a list of pictures is expected")
    return tuple(pictures)


def _check_text(where: str, message: Message) -> None:
    """Raises UserError for a text that no tokenizer takes, or that stands for what is not read."""
    try:
        message.text.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair: JSON can hold it, but no tokenizer takes it
        raise UserError(f"{where} is not text ({error})") from error
    for mark in OTHER_MARKS:
        if mark in message.text:
            raise UserError(f"{where} holds the mark {mark}, which is not read")
    if message.role != "user" and IMAGE_MARK in message.text:
        raise UserError(f"{where} holds an {IMAGE_MARK} mark, only questions show images")


def _turns(messages: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    """Returns the (question, answer) pairs of messages in which user and assistant take turns."""
    for index, message in enumerate(messages):
        expected = ("user", "assistant")[index % 2]
        if message.role != expected and index == 0:
            raise UserError("the conversation starts with an answer, it must start with a question")
        if message.role != expected:
            raise UserError(f"two turns in a row are from the {message.role} (turns {index - 1} and {index})")
        if message.role == "assistant" and not message.text:
            raise UserError(f"turn {index} is an empty answer")
    if len(messages) == 0 or len(messages) % 2:
        raise UserError(
            f"the conversation {'ends with a question' if messages else 'is empty'}, it must end with an answer"
        )
    texts = [message.text for message in messages]
    return tuple(zip(texts[::2], texts[1::2], strict=True))


def _reaching(column: str, ratings: Any, least: float, num_turns: int) -> list[bool]:
    """Returns whether each (question, answer) pair has at least the least rating."""
    if not isinstance(ratings, list) or not all(isinstance(rating, (int, float, NoneType)) for rating in ratings):
        raise UserError(f"{column!r} is {ratings!r:.100}, a list of ratings is expected")
    if len(ratings) != num_turns:
        raise UserError(f"{column!r} has {len(ratings)} ratings for {num_turns} turns, as many are expected")
    return [rating is not None and rating >= least for rating in ratings]


def _list(row: dict, column: str) -> list:
    if column not in row:
        raise UserError(f"no key {column!r}; got {sorted(row)}")
    if not isinstance(row[column], list):
        raise UserError(f"{column!r} is {type(row[column]).__name__}, a list is expected")
    return row[column]


def _role(name: Any, index: int) -> Role:
    if name not in ROLES:
        raise UserError(f"turn {index} is from {name!r}, allowed are {', '.join(map(repr, ROLES))}")
    return ROLES[name]


def _llava_messages(row: dict) -> list[Message]:
    messages = []
    for index, turn in enumerate(_list(row, "conversations")):
        if not isinstance(turn, dict) or not all(isinstance(turn.get(name), str) for name in ("from", "value")):
            raise UserError(f"turn {index} is {turn!r:.200}, an object with texts 'from' and 'value' is expected")
        messages.append(Message(_role(turn["from"], index), turn["value"].strip()))
    return messages


def _chat_messages(turns: Sequence[Any]) -> list[Message]:
    messages = []
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict) or "role" not in turn or "content" not in turn:
            raise UserError(f"turn {index} is {turn!r:.200}, an object with 'role' and 'content' is expected")
        if turn.get("tool_calls"):
            raise UserError(f"turn {index} has 'tool_calls', which are not read")
        text, pictures = _content(turn["content"], index)
        messages.append(Message(_role(turn["role"], index), text.strip(), pictures))
    return messages


def _messages(row: dict) -> list[Message]:
    return _chat_messages(_list(row, "messages"))


def _content(content: Any, index: int) -> tuple[str, tuple[Any, ...]]:
    """Returns a message's content, a text or a list of typed parts, as text with marks and the pictures in parts."""
    if isinstance(content, str):
        return content, ()
    if not isinstance(content, list):
        raise UserError(f"turn {index}: 'content' is {type(content).__name__}, a text or a list of parts is expected")
    texts, pictures = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image" and not any(part.get(name) for name in ("url", "base64")):
            texts.append(IMAGE_MARK)
            pictures += [part[name] for name in ("image", "path") if _is_picture(part.get(name))]
        else:
            raise UserError(
                f'turn {index}: a part is {part!r:.200}, allowed: {{"type": "text", "text": …}} and '
                f'{{"type": "image"}}, with the picture as "image" or "path", or for the next one of the row\'s images'
            )
    return "\n".join(texts), tuple(pictures)


def _is_picture(value: Any) -> bool:
    """Returns whether a part holds a picture. `datasets` gives every part every field, some of them empty."""
    return any(value.values()) if isinstance(value, dict) else bool(value)


def _texts_messages(row: dict) -> list[Message]:
    messages = []
    for index, turn in enumerate(_list(row, "texts")):
        if not isinstance(turn, dict) or not all(isinstance(turn.get(name), str) for name in ("user", "assistant")):
            raise UserError(f"turn {index} is {turn!r:.200}, an object with texts 'user' and 'assistant' is expected")
        messages += [Message("user", turn["user"].strip()), Message("assistant", turn["assistant"].strip())]
    return messages


def _prompt_messages(row: dict) -> list[Message]:
    messages = []
    for column, role in (("prompt", "user"), ("completion", "assistant")):
        value = row.get(column)
        messages += _chat_messages([{"role": role, "content": value}] if isinstance(value, str) else _list(row, column))
    return messages


SCHEMAS = (
    Schema("llava", ("conversations",), _llava_messages, needs_marks=True),
    Schema("messages", ("messages",), _messages),
    Schema("texts", ("texts",), _texts_messages),
    Schema("prompt", ("prompt", "completion"), _prompt_messages),
)
