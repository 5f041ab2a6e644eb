"""Pasted things: the same every time, their answers true, their splits apart on their axes, read as anybody's rows."""

import hashlib
import multiprocessing
import os
import random
import threading
import time
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from PIL import Image

from data.benchmarks.shapes import question_of, score
from data.index.build import build_indexes
from data.index.index import Index
from data.pasted import world as written
from data.pasted.compose import compose, draw
from data.pasted.parts.drawings import HELD_OUT_STYLE
from data.pasted.parts.knowledge import FACTS
from data.pasted.parts.words import WORDS
from data.pasted.questions import FAMILIES, absent_names
from data.pasted.scenes import Box, Scene, Thing, choose_names, is_reserved
from data.pasted.settings import PictureSettings, SplitSettings, WorldSettings
from data.pasted.sheets import write_sheets
from data.pasted.world import write_world
from data.sources.reading import load_samples
from data.sources.source import Source
from modeling.user_error import UserError
from tests.data.pasted.pasted_oracle import answer
from tests.data.pasted.tiny_stock import NAMES, tiny_stock
from tests.tiny_processor import tiny_processor

BY_TEXT = {name.text: name for name in NAMES}


def settings(seed: int = 0) -> WorldSettings:
    axes = {"backgrounds": "backgrounds", "style": "style", "combinations": "combinations", "scenes": "none"}
    tests = {f"test_{name}": SplitSettings(scenes=12, axis=axis, apart=True) for name, axis in axes.items()}
    return WorldSettings(seed=seed, splits={"train": SplitSettings(scenes=60), **tests})


def rows_of(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def turns_of(row: dict) -> list[tuple[str, str, str]]:
    texts = [message["value"].removeprefix("<image>\n") for message in row["conversations"]]
    return list(zip(row["families"], texts[::2], texts[1::2], strict=True))


def write(folder: Path, chosen: WorldSettings) -> dict[str, Path]:
    return write_world(folder, chosen, stock=tiny_stock(), say=lambda line: None)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.cpu_count", lambda: 3)
        return write(tmp_path_factory.mktemp("world") / "world", settings())


def disagreements(rows: list[dict]) -> list[tuple]:
    """The questions whose answer is not what the boxes and the pixels say, or that fit nothing or two things."""
    found = []
    for row in rows:
        for family, question, given in turns_of(row):
            try:
                right = answer(family, question, row)
            except (AssertionError, ValueError, KeyError, IndexError) as error:
                right = repr(error)
            if right != given:
                found.append((row["id"], family, question, given, right))
    return found


def test_every_answer_is_what_boxes_and_pixels_say(world):
    rows = [row for path in world.values() for row in rows_of(path)]
    assert disagreements(rows) == []
    asked = Counter(family for row in rows for family, _, _ in turns_of(row))
    assert set(asked) == set(FAMILIES) and asked.total() > 800
    # The negative control: with two things in each other's place, answers of most families are wrong.
    for row in rows:
        first, last = row["things"][0], row["things"][-1]
        first["name"], last["name"] = last["name"], first["name"]
    wrong = {family for _, family, _, _, _ in disagreements(rows)}
    assert wrong >= {"name", "where", "relation", "larger", "category", "knowledge", "chart", "list"}


def test_things_hardly_cover_each_other_and_stay_within_the_picture(world):
    for row in (row for path in world.values() for row in rows_of(path)):
        boxes = [Box(*(box[name] for name in Box._fields)) for box in [*row["things"], row["sign"]] if box]
        for box in boxes:
            assert box.x >= 0 and box.y >= 0 and box.x + box.width <= 168 and box.y + box.height <= 168
        for a, b in combinations(boxes, 2):
            assert a.shared(b) <= 0.05 * min(a.area, b.area)


def test_each_split_is_apart_on_its_axis(world):
    rows = {name: rows_of(path) for name, path in world.items()}
    scenes = {name: {str((row["things"], row["sign"])) for row in of} for name, of in rows.items()}
    assert all(not scenes[a] & scenes[b] for a, b in combinations(scenes, 2))
    backgrounds = {name: {row["background"] for row in of} for name, of in rows.items()}
    assert not backgrounds["test_backgrounds"] & set().union(
        *(found for name, found in backgrounds.items() if name != "test_backgrounds")
    )
    for name, of in rows.items():
        styles = [{thing["style"] for thing in row["things"]} for row in of]
        assert all((style == {HELD_OUT_STYLE}) == (name == "test_style") for style in styles)
        assert all(HELD_OUT_STYLE not in style for style in styles) == (name != "test_style")
        reserved = [
            any(is_reserved(BY_TEXT[a["name"]], BY_TEXT[b["name"]]) for a, b in combinations(row["things"], 2))
            for row in of
        ]
        assert set(reserved) == {name == "test_combinations"}


def test_names_that_may_be_confused_are_never_together_nor_asked_for():
    rng = random.Random(0)
    bear, polar_bear, dog, lion = (BY_TEXT[text] for text in ("bear", "polar bear", "dog", "lion"))
    for _ in range(300):
        chosen = choose_names(rng, NAMES, 4, "combinations")
        assert len(set(chosen)) == 4 and not {bear, polar_bear} <= set(chosen)
    scene = Scene(168, "", Box(0, 0, 1, 1), (Thing(bear, "noto", 0, Box(0, 0, 9, 9)),))
    hard, easy = absent_names(scene, NAMES, hard=True), absent_names(scene, NAMES, hard=False)
    assert {name.subgroup for name in hard} == {"mammal"} and {dog, lion} <= set(hard)
    assert "mammal" not in {name.subgroup for name in easy} and not {bear, polar_bear} & {*hard, *easy}


def test_existence_is_balanced_and_mostly_asks_for_what_is_like_something_there(world):
    asked = [
        (question, said, {BY_TEXT[thing["name"]].subgroup for thing in row["things"]})
        for row in rows_of(world["train"])
        for family, question, said in turns_of(row)
        if family == "existence"
    ]
    absent = [(question, subgroups) for question, said, subgroups in asked if said == "no"]
    assert 0.45 < len(absent) / len(asked) < 0.55
    hard = [any(name in question and BY_TEXT[name].subgroup in of for name in BY_TEXT) for question, of in absent]
    assert 0.4 < np.mean(hard) < 0.95


def test_a_conversation_asks_nothing_twice(world):
    for row in rows_of(world["train"]):
        questions = [question for _, question, _ in turns_of(row)]
        assert 1 <= len(questions) <= 12 and len(set(questions)) == len(questions)
        for family in ("reading", "list", "count"):  # one sign, one list; of counts, one of everything
            found = [(question, said) for name, question, said in turns_of(row) if name == family]
            assert len(found) <= (1 if family != "count" else 8)


def digests(paths: dict[str, Path]) -> dict[str, str]:
    files = next(iter(paths.values())).parent.iterdir()
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_cores(world, tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert digests(write(tmp_path / "again", settings())) == digests(world)
    other = write(tmp_path / "other", WorldSettings(seed=1, splits={"train": SplitSettings(scenes=2)}))
    assert rows_of(other["train"])[0]["things"] != rows_of(world["train"])[0]["things"]


def test_a_world_is_written_once_and_none_is_overwritten(world, tmp_path):
    folder, said = world["train"].parent, []
    before = digests(world)
    assert write_world(folder, settings(), stock=tiny_stock(), say=said.append) == world
    assert said == [f"{folder}: the world is there already"] and digests(world) == before
    with pytest.raises(UserError, match="holds something else than the world of these settings"):
        write_world(folder, settings(seed=1), stock=tiny_stock())
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="delete it, or write elsewhere"):
        write_world(tmp_path / "mine", settings(), stock=tiny_stock())


def test_a_world_that_lacks_a_file_is_refused(tmp_path):
    small = WorldSettings(splits={"train": SplitSettings(scenes=2), "more": SplitSettings(scenes=1)})
    write(tmp_path / "world", small)["more"].unlink()
    with pytest.raises(UserError, match="more.parquet: is missing; delete .*world, and the world is made anew"):
        write(tmp_path / "world", small)


def killed_world(folder: Path, report: Path) -> None:
    """Writes a large world, by two processes whose ids go to `report`."""
    os.cpu_count = lambda: 2
    make = written._keep_stock

    def keep(stock) -> None:
        make(stock)
        with report.open("a") as file:
            file.write(f"{os.getpid()}\n")

    written._keep_stock = keep
    write(folder, WorldSettings(splits={"train": SplitSettings(scenes=100_000)}))


def is_running(process: int) -> bool:
    """Whether a process is there, and no zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_start_leaves_no_process_and_the_next_one_goes_on(tmp_path):
    folder, report = tmp_path / "world", tmp_path / "report"
    process = multiprocessing.get_context("fork").Process(target=killed_world, args=(folder, report))
    process.start()
    workers: list[int] = []
    while len(workers) < 2 and process.is_alive():
        time.sleep(0.05)
        workers = [int(line) for line in report.read_text().split()] if report.exists() else []
    assert all(map(is_running, workers))
    process.kill()
    process.join()
    assert not folder.exists() and (tmp_path / ".world.partial").is_dir()
    end = time.monotonic() + 20
    while any(map(is_running, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(is_running, workers)), "a process waits for work that never comes"
    write(folder, WorldSettings(splits={"train": SplitSettings(scenes=2)}))
    assert {path.name for path in tmp_path.iterdir()} == {"world", "report", ".world.lock"}


def test_a_world_that_another_process_writes_is_waited_for(tmp_path):
    small, said = WorldSettings(splits={"train": SplitSettings(scenes=2)}), []
    locked, waited_for = threading.Event(), threading.Event()

    def write_elsewhere() -> None:
        with FileLock(tmp_path / ".world.lock", is_singleton=False):
            locked.set()
            waited_for.wait()
            write(tmp_path / "there", small)
            time.sleep(0.3)
            (tmp_path / "there").rename(tmp_path / "world")

    def say(line: str) -> None:
        said.append(line)
        waited_for.set()

    other = threading.Thread(target=write_elsewhere)
    other.start()
    locked.wait()
    write_world(tmp_path / "world", small, stock=tiny_stock(), say=say)
    other.join()
    assert [line.partition(": ")[2] for line in said] == [
        "another process writes it, which is waited for",
        "the world is there already",
    ]


def test_rows_pass_through_the_door_and_the_index(world, tmp_path):
    samples, bad = load_samples(Source(path=world["train"]))
    assert not bad and len(samples) == 60 and {sample.family for sample in samples} == {None}
    assert min(len(sample.turns) for sample in samples) > 3
    (path,) = build_indexes([Source(path=world["train"])], tiny_processor(), tmp_path, decode=True)
    index = Index(path, Source(path=world["train"]))
    assert index.is_good.all() and len(index.is_good) == 60


def test_questions_apart_name_their_family_and_those_of_a_picture_are_one_unit(world):
    samples, _ = load_samples(Source(path=world["test_scenes"]))
    questions = [question_of(sample) for sample in samples]
    assert {question.family for question in questions} <= set(FAMILIES)
    assert len({question.unit for question in questions}) == 12 < len({question.id for question in questions})
    for question in questions:
        (right,) = question.answers
        assert score(question.family, f" {right.upper()}.", right) == 1.0
        assert score(question.family, "nonsense", right) == 0.0
    assert score("list", "dog, car", "dog, bat") == 0.5


def test_a_thing_must_stand_out_from_its_background():
    stock = tiny_stock()
    grey = Image.new("RGBA", (24, 24), (128, 128, 128, 255))
    stock.drawings["noto"]["dog"] = (grey,)
    stock.backgrounds["texture-0"].paste((120, 130, 125), (0, 0, 200, 200))
    scene = Scene(168, "texture-0", Box(0, 0, 200, 200), (Thing(BY_TEXT["dog"], "noto", 0, Box(9, 9, 50, 50)),))
    assert not draw(scene, stock)[1]
    stock.backgrounds["texture-0"].paste((20, 10, 30), (0, 0, 200, 200))
    assert draw(scene, stock)[1]


def test_other_sizes_can_be_asked_for():
    stock = tiny_stock()
    small = PictureSettings(size=112, smallest=24, largest=60, letters=(12, 16), signs=1.0, charts=0.0, max_things=3)
    for number in range(10):
        scene, image = compose(random.Random(number), stock, "none", small)
        assert image.size == (112, 112) and scene.sign is not None and 12 <= scene.sign.height <= 16
        assert all(24 <= max(thing.box[2:]) <= 60 for thing in scene.things) and len(scene.things) <= 3
    for wrong in (
        {"min_things": 5, "max_things": 4},
        {"largest": 150},
        {"smallest": 60},
        {"letters": (30, 20)},
        {"letters": (40, 60)},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PictureSettings(**wrong)


def test_a_fact_has_one_answer_and_no_word_is_a_name():
    for fact in FACTS:
        assert all(not a & b for a, b in combinations(fact.answers.values(), 2)), fact.questions
    assert len(WORDS) > 100 and not set(WORDS) & set(BY_TEXT) and max(map(len, WORDS)) <= 5


def test_sheets_show_every_picture(world, tmp_path):
    sheets = write_sheets(world["test_style"], 8, tmp_path)
    assert [sheet.name for sheet in sheets] == ["test_style-00000.png", "test_style-00006.png"]
    assert np.asarray(Image.open(sheets[0]))[:168, :168].std() > 10  # a picture, not paper


def test_lines_say_what_is_missing_and_how_fast_rows_are_made(tmp_path):
    said: list[str] = []
    stock = replace(tiny_stock(), missing=("photographs: no apt",))
    write_world(tmp_path / "w", WorldSettings(splits={"train": SplitSettings(scenes=2)}), stock=stock, say=said.append)
    assert said[0] == "photographs: no apt; the world is smaller without it"
    assert "rows/s" in said[1] and said[1].startswith("train: 2 pictures, 2 rows")
    page = (tmp_path / "w" / "LICENCES.md").read_text()
    assert "fluent-emoji-3d" in page and "tuxpaint" in page and "plasma" not in page
