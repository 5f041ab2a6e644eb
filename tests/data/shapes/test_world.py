"""The embedded world: the same every time, its parts apart, its answers true, its questions not answerable blindly."""

import hashlib
import json
import random
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

import data.shapes.world
from data.shapes.patches import GROUPS, NO_WORD, patch_words
from data.shapes.questions import QUESTION_FAMILIES
from data.shapes.scenes import IMAGE_SIZE, PLACES, draw_scene, sample_scene
from data.shapes.world import SplitSettings, WorldSettings, split_rows, write_world
from data.sources.reading import load_samples
from data.sources.source import Source
from tests.data.shapes.shapes_oracle import answer

PARTS = ("train", "validation", "calibration", "test")


def world(seed: int = 0) -> WorldSettings:
    return WorldSettings(
        seed=seed,
        splits={
            "train": SplitSettings(part="train", rows=30, questions=10),
            "test": SplitSettings(part="test", rows=24),
        },
    )


def digests(directory: Path) -> dict[str, str]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows_of(part: str, rows: int, questions: int = 1, kinds: str = "all"):
    return list(split_rows(part, SplitSettings(part=part, rows=rows, questions=questions, kinds=kinds), seed=0))


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path):
    one, two, other = (
        write_world(tmp_path / name, world(seed))["train"].parent
        for name, seed in (("one", 0), ("two", 0), ("other", 1))
    )
    assert digests(one) == digests(two)
    assert digests(one).keys() == digests(other).keys()
    assert all(digests(one)[name] != digests(other)[name] for name in ("train.json", "test.json"))
    assert one.name == two.name != other.name


def test_a_world_is_written_once(tmp_path):
    paths = write_world(tmp_path, world())
    (paths["test"].parent / "mark").touch()
    assert write_world(tmp_path, world()) == paths
    assert (paths["test"].parent / "mark").exists()
    assert [path.name for path in tmp_path.iterdir()] == [paths["test"].parent.name]


def test_two_runs_may_write_the_same_world_at_once(tmp_path, monkeypatch):
    draw = data.shapes.world.draw_scene

    def meanwhile(scene):
        monkeypatch.setattr(data.shapes.world, "draw_scene", draw)
        write_world(tmp_path, world())  # the other run, done before this one has drawn its first picture
        return draw(scene)

    monkeypatch.setattr(data.shapes.world, "draw_scene", meanwhile)
    directory = write_world(tmp_path, world())["test"].parent
    assert [path.name for path in tmp_path.iterdir()] == [directory.name]
    assert (directory / "train.json").exists()


def test_the_files_are_read_by_the_loader_of_any_llava_json(tmp_path):
    paths = write_world(tmp_path, world())
    train, bad = load_samples(Source(path=paths["train"], images=paths["train"].parent))
    assert not bad and len(train) == 30 and {len(sample.images) for sample in train} == {1}
    assert {sample.family for sample in train} == {None} and max(len(sample.turns) for sample in train) == 10
    test, bad = load_samples(Source(path=paths["test"], images=paths["test"].parent))
    assert not bad and Counter(sample.family for sample in test) == dict.fromkeys(QUESTION_FAMILIES, 4)
    assert {len(sample.turns) for sample in test} == {1}
    with Image.open(test[0].images[0]) as image:
        assert image.mode == "RGB" and image.size == (IMAGE_SIZE, IMAGE_SIZE)
    ids = [row["id"] for path in paths.values() for row in json.loads(path.read_text())]
    assert len(set(ids)) == len(ids)


@pytest.mark.slow
def test_no_scene_is_in_two_parts():
    descriptions = {part: {scene.description for scene, _, _ in rows_of(part, 600)} for part in PARTS}
    for part in PARTS:
        for other in PARTS:
            assert part == other or not descriptions[part] & descriptions[other]
    # The smallest scenes are few, so a split by seed alone would share some of them.
    train, test = (
        {sample_scene(random.Random(i), part, 1, 1).description for i in range(3000)} for part in ("train", "test")
    )
    assert train and test and not train & test


@pytest.mark.parametrize(("questions", "kinds"), [(1, "all"), (14, "lookup"), (14, "all"), (14, "hard")])
def test_every_answer_is_what_an_independent_reading_of_the_scene_gives(questions, kinds):
    asked = 0
    for scene, _, turns in rows_of("train", 1200 // questions, questions, kinds):
        for question, given in turns:
            assert answer(question, scene.description) == given, (question, given, scene.description)
            asked += 1
    assert asked > 800


def test_the_oracle_can_say_no():
    scene, _, _ = rows_of("test", 1)[0]
    assert answer("Is there a thing?", scene.description) == "yes"
    assert answer("How many times is there a thing?", scene.description) != "0"
    with pytest.raises(AssertionError):
        answer("What color is the moon?", scene.description)


@pytest.mark.slow
def test_the_question_alone_does_not_tell_the_answer():
    """Always the commonest answer to a question's form (names, places and options left out) stays near chance."""
    bounds = {"existence": 0.55, "attribute": 0.45, "relation": 0.55, "reading": 0.1, "choice": 0.32, "caption": 0.01}
    names = {word for group in ("color", "shape", "row", "column") for word in (w.strip() for w in GROUPS[group])}
    answers = defaultdict(lambda: defaultdict(Counter))
    for _, family, ((question, given),) in rows_of("test", 6000):
        form = " ".join("*" if word.strip("?,") in names else word for word in question.split(":")[0].split())
        answers[family][form][given] += 1
    for family, bound in bounds.items():
        forms = answers[family].values()
        blind = sum(max(form.values()) for form in forms) / sum(form.total() for form in forms)
        assert blind <= bound, (family, blind)


def test_yes_and_no_are_balanced():
    answers = Counter(turns[0][1] for _, family, turns in rows_of("test", 6000) if family == "existence")
    assert 0.45 < answers["yes"] / answers.total() < 0.55


def test_a_conversation_asks_nothing_twice_and_captions_last_in_a_third_of_them():
    captioned = 0
    for _, _, turns in rows_of("train", 300, questions=12):
        questions = [question for question, _ in turns]
        assert 4 <= len(questions) <= 12 and len(set(questions)) == len(questions)
        assert "Describe the picture." not in questions[:-1]
        captioned += questions[-1] == "Describe the picture."
    assert 70 < captioned < 130


def test_different_scenes_are_different_pictures():
    scenes = {scene.description: scene for scene, _, _ in rows_of("validation", 300)}
    pictures = {draw_scene(scene).tobytes() for scene in scenes.values()}
    assert len(pictures) == len(scenes)


def test_patches_say_what_is_drawn_where_it_is_drawn():
    for scene, _, _ in islice(rows_of("train", 60), 60):
        words = patch_words(scene, draw_scene(scene), 8).reshape(12, 12, len(GROUPS))
        by_group = dict(zip(GROUPS, np.moveaxis(words, 2, 0), strict=True))
        for thing in scene.things:
            x, y = thing.center
            patch = y // 8, x // 8
            # The middle of a ring is empty; its rim is found a radius above.
            if thing.shape == "ring":
                patch = (y - (6 if thing.size == "small" else 10)) // 8, x // 8
            assert GROUPS["color"][by_group["color"][patch]] == f" {thing.color}"
            assert GROUPS["shape"][by_group["shape"][patch]] == f" {thing.shape}"
            assert GROUPS["size"][by_group["size"][patch]] == f" {thing.size}"
        assert (by_group["thing"] == 0).sum() == len(scene.things)
        sign = by_group["kind"] != NO_WORD
        assert sign.any() and not (sign & (by_group["color"] != NO_WORD)).any()
        row, column = np.argwhere(sign)[0] // 4
        assert PLACES[3 * row + column] == PLACES[scene.sign.cell]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"part": "train", "rows": 0}, "greater than 0"),
        ({"part": "exam", "rows": 1}, "train"),
        ({"part": "train", "rows": 1, "min_things": 4, "max_things": 2}, "min_things 4 is above max_things 2"),
        ({"part": "train", "rows": 1, "max_things": 9}, "less than or equal to 4"),
        ({"part": "train", "rows": 1, "colours": 3}, "Extra inputs"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        SplitSettings(**settings)
