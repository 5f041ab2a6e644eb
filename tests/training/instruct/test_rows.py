"""Rows that `task: instruct` cannot be trained on are refused in its first stage, and each line says which and why."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling.user_error import UserError
from tests.training.instruct.tiny_instruct import png, tiny_processor
from tests.training.tasks.tiny_instruct_recipe import save_instruct_inputs, tiny_instruct_recipe
from training.instruct.rows import answer_weights
from training.run import execute
from training.tasks.instruct import stages, trained_on

BOX = {"name": "cross", "x": 0, "y": 0, "width": 12, "height": 20}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    save_instruct_inputs(folder)
    return folder


def things(*boxes):
    """Replaces the things of the third row."""
    return lambda rows: rows[2].update(things=list(boxes))


def without_a_picture(rows):
    rows[1].update(image=None)
    rows[1]["conversations"][0]["value"] = "is there a cross ?"


def with_two_pictures(rows):
    for row in rows:
        row["images"] = [row.pop("image")]
    rows[1]["images"] *= 2
    rows[1]["conversations"][0]["value"] = "<image>\n<image>\nis there a cross ?"


def with_a_late_picture(rows):
    rows[1]["conversations"][0]["value"] = "is there a cross ?"
    rows[1]["conversations"][2]["value"] = "<image>\nwhat is left of the red circle ?"


def with_an_answer_alike(rows):
    rows[5]["conversations"][3]["value"] = "a cross"


def of_another_shape(rows):
    rows[4]["image"]["bytes"] = png(0, (24, 48))


def without_family(rows):
    for row in rows:
        row.pop("family")


BAD = {
    "no picture": ("train", without_a_picture, {}, "row 1 has 0 pictures, allowed: one"),
    "two pictures": ("train", with_two_pictures, {}, "row 1 has 2 pictures, allowed: one"),
    "late": ("train", with_a_late_picture, {}, "row 1 shows its picture after its first question"),
    "cut": ("train", of_another_shape, {}, "a picture of 24 x 48 pixels is cut by the processor"),
    "outside": ("train", things({**BOX, "x": 24}), {}, "row 2, things: 'cross' at x 24, y 0 lies outside"),
    "no area": ("train", things({**BOX, "height": 0}), {}, "row 2, things: got .*above 0"),
    "between patches": ("train", lambda rows: [row.update(things=[{**BOX, "width": 1}]) for row in rows], {},
                        "no box in 'things' of .* covers the middle of a patch"),
    "no things": ("train", lambda rows: [row.update(things=rows[0]["things"][:0]) for row in rows], {},
                  "no row of .* lists a thing in 'things'"),
    "no such column": ("train", None, {"things": "boxes"}, "has no column 'boxes', got .*things"),
    "no such answer": ("train", None, {"answer_weights": {"": 4}}, "answer_weights: got '', allowed: answers that"),
    "weights of one token": ("train", with_an_answer_alike, {"answer_weights": {"a blue square": 4, "a cross": 2}},
                             "'a blue square' and 'a cross' begin with the same token"),
    "no family": ("test", without_family, {}, "sample test-0: got family None"),
    "truncated": ("test", lambda rows: rows[3]["image"].update(bytes=png(0)[:-40]), {}, "data.evaluation: .*test.parq"),
    "trained on": ("test", "train", {}, "data.evaluation: 6 of 6 samples are in data.train too"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("split, change, data, message", BAD.values(), ids=BAD)
def test_the_first_stage_refuses(inputs, tmp_path, split, change, data, message):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "base").symlink_to(inputs / "base")
    for name in ("train", "test"):
        rows = pq.read_table(inputs / f"{'train' if change == 'train' else name}.parquet").to_pylist()
        if callable(change) and name == split:
            change(rows)
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    weights = {"answer_weights": data["answer_weights"]} if "answer_weights" in data else {}
    recipe = tiny_instruct_recipe(folder, **{name: value for name, value in data.items() if name not in weights})
    recipe = recipe.model_copy(update={"tuning": recipe.tuning.model_copy(update=weights)})
    with pytest.raises(UserError, match=message) as refused:
        execute(recipe, stages(recipe)[:1], tmp_path / "run")
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_rows_may_lie_in_json(inputs, tmp_path):
    """Their things are read as any of their columns. NaN, which JSON's readers take, is no place."""
    rows = pq.read_table(inputs / "train.parquet").to_pylist()
    for row in rows:
        (tmp_path / row["image"]["path"]).write_bytes(row["image"]["bytes"])
        row["image"] = row["image"]["path"]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    train = {"path": str(tmp_path / "train.json"), "images": str(tmp_path)}
    recipe = tiny_instruct_recipe(inputs, output=str(tmp_path / "taught"), train=train)
    run = execute(recipe, stages(recipe)[:1], tmp_path / "run")
    _, index, numbers = trained_on(run, run.result("data")["index"])
    assert len(numbers) == 6
    vocabulary = tiny_processor().tokenizer.get_vocab()
    weights = answer_weights({"two": 3, "a blue square": 2}, index, numbers)
    assert weights == {vocabulary["two"]: 3, vocabulary["a"]: 2} and vocabulary["two"] != vocabulary["a"]
    rows[2]["things"][0]["x"] = float("nan")
    (tmp_path / "train.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match="row 2, things: got .*nan.*allowed"):
        execute(recipe, stages(recipe)[:1], tmp_path / "again")
