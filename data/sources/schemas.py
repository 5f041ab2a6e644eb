"""The layouts in which people keep conversations about pictures, and how a row of each is read.

| schema | columns | turns |
|---|---|---|
| llava | `conversations`, `image` | `{"from": "human" or "gpt", "value": text}` (arXiv 2304.08485) |
| messages | `messages`, `images` | `{"role": "user" or "assistant", "content": text or typed parts}` |
| texts | `texts`, `images` | `{"user": text, "assistant": text}`, as the_cauldron and FineVision |
| prompt | `prompt`, `completion`, `images` | one question and its answer, as texts or as lists of messages |

`image` and `images` mean the same: one picture, a list of them, or none. So do `video` and `videos`. Each `<image>`
mark in a question stands for the next picture, and each `<video>` for the next video. Where a schema but llava has
pictures, or videos, and no mark of them, they stand before the first question. In llava, `<image>` also stands for a
video where a row has videos and no picture, as in LLaVA-Video-178K.

What would change a row's meaning and is not read here makes the row bad: it is never trained without it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, NoneType
from typing import Any

from data.sample import MEDIA, Medium, mark_of
from data.sources.messages import Message, chat_messages, llava_messages, prompt_messages, texts_messages
from modeling.user_error import UserError

OTHER_MARK = "<audio>"
"""Mark of what is not read."""
NOT_READ = ("audio", "audios", "tools", "objects", "rejected", "rejected_response")
"""Columns that would change a row's meaning."""


@dataclass(frozen=True)
class Row:
    """A row of any schema.

    Attributes:
        id: its id, or None if it has none.
        files: its pictures and videos as the row names them. Each mark in a question stands for the next one.
        turns: (question, answer) pairs, in order.
        family: the family of questions that says how its answers are scored.
        system: what a system message says.
    """

    id: str | None
    files: Mapping[Medium, tuple[Any, ...]]
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
        needs_marks: whether each picture and video must have a mark.
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
    for name, text in (("id", str(row_id)), ("family", family or "")):
        _check_encodes(f"'{name}'", text)
    messages = schema.messages(row)
    files = {medium: _files(row, medium, messages) for medium in MEDIA}
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
    if min_ratings:
        reaching = [_reaching(column, row.get(column), least, len(turns)) for column, least in min_ratings.items()]
        turns = tuple(turn for turn, *reaches in zip(turns, *reaching, strict=True) if all(reaches))
    if not turns:
        return None
    return Row(
        None if row_id is None else str(row_id),
        files,
        _with_marks(turns, files, schema),
        family,
        system[0] if system else None,
    )


def columns_of(medium: Medium) -> tuple[str, str]:
    """Returns the columns that may hold what a row shows of a medium."""
    return medium, f"{medium}s"


def _files(row: dict, medium: Medium, messages: Sequence[Message]) -> tuple[Any, ...]:
    """Returns the pictures, or the videos, that a row names, or parts of its messages hold. None is looked at."""
    what = "picture" if medium == "image" else medium
    in_parts = tuple(file for message in messages if message.files for file in message.files.get(medium, ()))
    given = [name for name in columns_of(medium) if row.get(name) not in (None, [], "")]
    if len(given) > 1:
        raise UserError(f"both {given[0]!r} and {given[1]!r} are given, one of them is expected")
    if given and in_parts:
        raise UserError(f"both {given[0]!r} and parts of messages hold {what}s, one of them is expected")
    if not given:
        return in_parts
    value = row[given[0]]
    files = value if isinstance(value, list) else [value]
    if not all(isinstance(file, (str, bytes, dict)) for file in files):
        raise UserError(f"{given[0]!r} is {value!r:.100}, a {what} or a list of {what}s is expected")
    return tuple(files)


def _with_marks(
    turns: tuple[tuple[str, str], ...], files: Mapping[Medium, tuple[Any, ...]], schema: Schema
) -> tuple[tuple[str, str], ...]:
    """Returns (question, answer) pairs with a mark for each picture and video. Raises UserError if one is missing."""
    questions, missing = [question for question, _ in turns], ""
    if schema.needs_marks and files["video"] and not files["image"]:
        questions = [question.replace(mark_of("image"), mark_of("video")) for question in questions]
    for medium in MEDIA:
        mark, count = mark_of(medium), len(files[medium])
        num_marks = sum(question.count(mark) for question in questions)
        if num_marks == 0 and not schema.needs_marks:
            missing += mark * count
        elif num_marks != count:
            raise UserError(f"{num_marks} {mark} marks for {count} {medium}s, as many marks as {medium}s are expected")
    if missing:
        questions[0] = f"{missing}\n{questions[0]}"
    return tuple((question, answer) for question, (_, answer) in zip(questions, turns, strict=True))


def _check_text(where: str, message: Message) -> None:
    """Raises UserError for a text that no tokenizer takes, or that stands for what is not read."""
    _check_encodes(where, message.text)
    if OTHER_MARK in message.text:
        raise UserError(f"{where} holds the mark {OTHER_MARK}, which is not read")
    if message.role == "user":
        return
    for medium in MEDIA:
        if mark_of(medium) in message.text:
            raise UserError(f"{where} holds the mark {mark_of(medium)}, only questions show {medium}s")


def _check_encodes(where: str, text: str) -> None:
    """Raises UserError for half a surrogate pair: JSON can hold it, but no tokenizer and no table takes it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} is not text ({error})") from error


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


SCHEMAS = (
    Schema("llava", ("conversations",), llava_messages, needs_marks=True),
    Schema("messages", ("messages",), chat_messages),
    Schema("texts", ("texts",), texts_messages),
    Schema("prompt", ("prompt", "completion"), prompt_messages),
)
