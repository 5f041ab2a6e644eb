"""What the rows must be that `task: instruct` trains on. Its first stage looks, before anything is computed."""

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow.compute as pc
from transformers import ProcessorMixin

from data.conversations import IGNORE_INDEX
from data.images import tokens_at
from data.index.index import Index
from data.sample import mark_of
from data.sources.reading import open_source
from modeling.user_error import UserError
from training.instruct.naming import NO_NAME, Thing, patch_names, read_things


def check_pictures(index: Index, rows: np.ndarray, processor: ProcessorMixin, side: int) -> None:
    """Checks that each row has one picture, of which each patch becomes one visual token. No picture is opened.

    Args:
        rows: of the index, good ones.
        side: patches in a row and in a column of what the vision tower sees.

    Raises:
        UserError: a row has another number of pictures, or shows its picture after an answer, or the processor cuts a
            picture, or makes another number of visual tokens of it.
    """
    counts = index.num_pictures[rows]
    if (counts != 1).any():
        first = int(np.flatnonzero(counts != 1)[0])
        raise UserError(f"{index.name}: row {rows[first]} has {counts[first]} pictures, allowed: one")
    first_questions = pc.list_element(index.texts("questions", rows), 0)
    late = np.flatnonzero(~pc.match_substring(first_questions, mark_of("image")).to_numpy(zero_copy_only=False))
    if len(late):
        raise UserError(
            f"{index.name}: row {rows[late[0]]} shows its picture after its first question, allowed: in it, as the "
            "questions are independent of one another"
        )
    for height, width in np.unique(index.sizes_of(rows, "image"), axis=0).tolist():
        picture = f"{index.name}: a picture of {width} x {height} pixels"
        num_tokens = int((tokens_at((height, width), processor) == processor.image_token_id).sum())
        if num_tokens != side**2:
            raise UserError(f"{picture} has {num_tokens} visual tokens, allowed: {side**2}, one for each patch")
        if is_cut(processor.image_processor, height, width):
            raise UserError(
                f"{picture} is cut by the processor, so that boxes of things do not fit what the model sees; allowed: "
                "square pictures, or a processor without do_center_crop, whose size is that of its crop"
            )


def is_cut(image_processor, height: int, width: int) -> bool:
    """Returns whether a model sees less, or more, than the whole picture, stretched to a square."""
    if getattr(image_processor, "do_pad", False) and height != width:
        return True
    if not getattr(image_processor, "do_center_crop", False):
        return False
    size, crop = image_processor.size, image_processor.crop_size
    if "shortest_edge" in size:
        return height != width or size["shortest_edge"] != crop["height"]
    return (size["height"], size["width"]) != (crop["height"], crop["width"])


def names_of_patches(index: Index, rows: np.ndarray, column: str, side: int) -> tuple[list[str], np.ndarray]:
    """Returns the names of all things, sorted, and the number of each patch's name [N, patches] int64.

    Args:
        rows: of the index, good ones with one picture each.
        column: of the source, which lists the things.
        side: patches in a row and in a column.

    Raises:
        UserError: the source has no such column, a row does not list its things, or a box lies outside of its picture,
            or no box covers the middle of a patch.
    """
    source = open_source(index.source)
    typed = column in source.table.column_names  # a row of a JSON file is a text
    table = source.table.select_columns([column]) if typed else source.table  # pictures are not read
    sizes = index.sizes_of(rows, "image").tolist()
    things: list[list[Thing]] = []
    for row, size in zip(rows.tolist(), sizes, strict=True):
        given = source.as_object(table[row])
        if column not in given:
            raise UserError(f"data.things: {index.name} has no column {column!r}, got {', '.join(given)}")
        where = f"{index.name}: row {row}, {column}"
        things.append(read_things(given[column], where))
        _check_boxes(things[-1], size, where)
    names = sorted({thing.name for of_picture in things for thing in of_picture})
    if not names:
        raise UserError(f"data.things: no row of {index.name} lists a thing in {column!r}")
    numbers = {name: number for number, name in enumerate(names)}
    named = np.stack(
        [patch_names(of_picture, numbers, size, side) for of_picture, size in zip(things, sizes, strict=True)]
    )
    if (named == NO_NAME).all():
        raise UserError(
            f"data.things: no box in {column!r} of {index.name} covers the middle of a patch; boxes are in pixels"
        )
    return names, named


def _check_boxes(things: list[Thing], size: tuple[int, int], where: str) -> None:
    """Raises UserError where no part of a box lies in a picture of this height and width."""
    height, width = size
    for thing in things:
        if not (-thing.width < thing.x < width and -thing.height < thing.y < height):
            raise UserError(
                f"{where}: {thing.name!r:.60} at x {thing.x:g}, y {thing.y:g} lies outside of its picture of "
                f"{width} x {height} pixels"
            )


def answer_weights(weights: Mapping[str, float], index: Index, rows: np.ndarray) -> dict[int, float]:
    """Returns the weights of answers by the tokens that they begin with.

    Args:
        weights: answer -> how much its first token counts.
        rows: of the index, good ones.

    Raises:
        UserError: no row gives such an answer, or two begin with one token and have different weights.
    """
    found: dict[int, str] = {}
    for answer, token in _first_tokens(index, rows, weights).items():
        other = found.setdefault(token, answer)
        if weights[other] != weights[answer]:
            raise UserError(
                f"tuning.answer_weights: {other!r:.60} and {answer!r:.60} begin with the same token, allowed: equal "
                "weights"
            )
    return {token: weights[answer] for token, answer in found.items()}


def _first_tokens(index: Index, rows: np.ndarray, answers: Iterable[str]) -> dict[str, int]:
    """Returns the token that each answer begins with in the rows. Raises UserError where no row gives it."""
    texts = index.texts("answers", rows)
    given, owners = pc.list_flatten(texts), pc.list_parent_indices(texts)
    found = {}
    for answer in answers:
        place = pc.index(given, answer).as_py()
        if place < 0:
            raise UserError(f"tuning.answer_weights: got {answer!r:.100}, allowed: answers that {index.name} gives")
        number = owners[place].as_py()
        turn = place - pc.index(owners, number).as_py()
        tokens = index.tokens(int(rows[number]))
        supervised = (tokens["labels"] != IGNORE_INDEX).int()
        begins = (supervised.diff(prepend=supervised.new_zeros(1)) == 1).nonzero().flatten()
        found[answer] = int(tokens["input_ids"][begins[turn]])
    return found
