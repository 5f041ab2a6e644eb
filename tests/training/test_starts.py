"""What a run folder accepts at a later start, what it refuses, and what it records."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants
from PIL import Image

import training.run
from data.shapes import world
from modeling.user_error import UserError
from tests.hub_server import Repo
from training import starts
from training.inputs.fingerprints import fingerprints, is_unchanged
from training.recipe.file import RECIPES, load_recipe
from training.run import Stage, execute
from training.starts import COMPLETE, METRICS


@pytest.fixture
def inputs(tmp_path, monkeypatch) -> Path:
    """A folder with files of data and of a model, which is the working directory."""
    shutil.copytree(RECIPES, tmp_path / "recipes")
    (tmp_path / "dense").mkdir()
    for name in ("config.json", "model.safetensors", "README.md"):
        (tmp_path / "dense" / name).write_text("{}")
    (tmp_path / "rows.json").write_text("[1]")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(*overrides: str):
    train = "data.train=[{path: rows.json, images: .}]"
    return load_recipe("debug", ["model.path=dense", train, *overrides])


def begin(directory: Path, *overrides: str, trained: bool = True, processes: int = 1, **keywords):
    """Starts a run that does one stage, and is stopped in the second."""

    def stop(run):
        raise InterruptedError

    def data(run):
        if trained:
            (run.directory / "trainer").mkdir(parents=True)
            (run.directory / "trainer" / METRICS).touch()
        return {}

    stages = [Stage("data", "data", data), Stage("more", "more", stop)]
    environment = training.run.environment() | {"world_size": processes}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.run, "environment", lambda: environment)
        with pytest.raises(InterruptedError):
            execute(recipe(*overrides), stages, directory, **keywords)


FREE = [
    "training.report_to=[]",
    "training.logging_steps=7",
    "training.num_workers=3",
    "training.save_steps=9",
    "training.gradient_checkpointing=true",
    "evaluation.batch_size=1",
    "calibration.batch_size=1",
]


def test_what_decides_no_result_may_change_and_is_recorded(inputs):
    begin(inputs / "run")
    begin(inputs / "run", *FREE)
    lines = [json.loads(line) for line in (inputs / "run" / "starts.jsonl").read_text().splitlines()]
    assert [set(line["changed"]) for line in lines] == [set(), {override.split("=")[0] for override in FREE}]
    assert lines[1]["changed"]["training.logging_steps"] == {"before": 1, "now": 7}
    written = yaml.safe_load((inputs / "run" / "recipe.yaml").read_text())
    assert written["training"]["logging_steps"] == 7, "the run goes on with the new value"
    begin(inputs / "run", *FREE)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=1"], "seed: got 1, before 0"),
        (["training.learning_rate=0.5"], "training.learning_rate: got 0.5, before 0.001"),
        (["training.deepspeed=recipes/deepspeed/zero2.json"], "training.deepspeed: got .*zero2.json', before None"),
        (["plan.budget.visual_flops=0.4", "seed=2"], "seed: got 2, before 0; plan.budget.visual_flops: got 0.4"),
        (["compare=[]"], "compare.0.name: got nothing, before 'untrained'.*more"),
        (["plan={planner: uniform, budget: {visual_flops: 0.5}}"], "plan.planner: got 'uniform', before 'greedy'"),
    ],
)  # fmt: skip
def test_every_other_change_is_refused_by_name(inputs, overrides, message):
    begin(inputs / "run")
    before = (inputs / "run" / "recipe.yaml").read_text()
    with pytest.raises(UserError, match=f"another recipe: {message}.*begin again with --restart"):
        begin(inputs / "run", *overrides)
    assert (inputs / "run" / "recipe.yaml").read_text() == before


@pytest.mark.parametrize(
    ("overrides", "processes"),
    [
        (["training.micro_batch_size=2", "training.gradient_accumulation_steps=2"], 1),
        (["training.micro_batch_size=1"], 4),
        (["training.micro_batch_size=1", "training.gradient_accumulation_steps=2"], 2),
    ],
)
def test_an_equal_global_batch_may_be_divided_otherwise(inputs, overrides, processes):
    begin(inputs / "run")
    begin(inputs / "run", *overrides, processes=processes)
    assert json.loads((inputs / "run" / "env.json").read_text())["world_size"] == processes
    first, second = (json.loads(line) for line in (inputs / "run" / "starts.jsonl").read_text().splitlines())
    assert first["environment"]["world_size"] == 1 and second["environment"]["world_size"] == processes


def test_another_global_batch_is_refused_once_training_has_begun(inputs):
    begin(inputs / "early", trained=False)
    begin(inputs / "early", "training.micro_batch_size=2", processes=3, trained=False)
    begin(inputs / "run")
    with pytest.raises(UserError, match=r"4 samples in a step.*go on with 2 \(training.micro_batch_size: got 2, befo"):
        begin(inputs / "run", "training.micro_batch_size=2")
    with pytest.raises(UserError, match=r"go on with 8 \(processes: got 2, before 1\)"):
        begin(inputs / "run", processes=2)


def test_a_dense_run_counts_the_processes_too():
    dense = load_recipe("tiny_teacher")
    assert dense.global_batches(2) == {name: 2 * batch for name, batch in dense.global_batches(1).items()}
    assert len(dense.global_batches(1)) == 1 + len(dense.teacher.phases)


@pytest.mark.parametrize(
    ("sharded", "ended", "refused"), [(True, False, True), (False, False, False), (True, True, False)]
)
def test_another_number_of_processes_cannot_load_shards(inputs, sharded, ended, refused):
    begin(inputs / "run")
    checkpoint = inputs / "run" / "students" / "one" / "trainer" / "checkpoint-20"
    checkpoint.mkdir(parents=True)
    (checkpoint / COMPLETE).write_text(json.dumps({"processes": 1, "sharded": sharded}))
    if ended:
        (checkpoint.parent.parent / "weights").mkdir()
    if refused:
        with pytest.raises(UserError, match="checkpoint-20: DeepSpeed divided this checkpoint among 1 proc.* in 4"):
            begin(inputs / "run", "training.micro_batch_size=1", processes=4)
    else:
        begin(inputs / "run", "training.micro_batch_size=1", processes=4)


# ---- a precision that the machine decides ----


@pytest.mark.parametrize(("first", "second"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_auto_stays_what_it_was_where_the_run_was_begun(inputs, monkeypatch, capsys, first, second):
    def written():
        return yaml.safe_load((inputs / "run" / "recipe.yaml").read_text())["training"]["precision"]

    monkeypatch.setattr(training.run, "fast_precision", lambda: first)
    begin(inputs / "run", "training.precision=auto")
    assert written() == first and f"training.precision: auto is {first} in this run" in capsys.readouterr().out
    monkeypatch.setattr(training.run, "fast_precision", lambda: second)  # another machine
    for same in ("auto", first):
        begin(inputs / "run", f"training.precision={same}")
        last = json.loads((inputs / "run" / "starts.jsonl").read_text().splitlines()[-1])
        assert written() == first and last["changed"] == {}
    with pytest.raises(UserError, match=f"training.precision: got '{second}', before '{first}'"):
        begin(inputs / "run", f"training.precision={second}")
    capsys.readouterr()
    begin(inputs / "run", "training.precision=auto", restart=True, confirmed=True)
    assert written() == second and f"auto is {second} in this run" in capsys.readouterr().out


def test_stages_never_see_auto_and_without_a_finished_one_it_is_decided_anew(inputs, monkeypatch):
    seen = []

    def stop(run):
        seen.append(run.recipe.training.precision)
        raise InterruptedError

    for precision in ("float32", "bfloat16"):
        monkeypatch.setattr(training.run, "fast_precision", lambda precision=precision: precision)
        with suppress(InterruptedError):
            execute(recipe("training.precision=auto"), [Stage("data", "data", stop)], inputs / "run")
    assert seen == ["float32", "bfloat16"]


# ---- content ----


def test_data_may_move(inputs):
    begin(inputs / "run")
    (inputs / "elsewhere").mkdir()
    shutil.copytree("dense", "elsewhere/dense")
    shutil.move("rows.json", "elsewhere/rows.json")
    moved = "data.train=[{path: elsewhere/rows.json, images: elsewhere}]"
    begin(inputs / "run", moved, "model.path=elsewhere/dense")
    last = json.loads((inputs / "run" / "starts.jsonl").read_text().splitlines()[-1])
    assert set(last["changed"]) == {"data.train.0.path", "data.train.0.images", "model.path"}
    (inputs / "elsewhere" / "rows.json").write_text("[2]")
    with pytest.raises(UserError, match="data.train.0.path: elsewhere/rows.json has another content"):
        begin(inputs / "run", moved, "model.path=elsewhere/dense")


@pytest.mark.parametrize("name", ["rows.json", "dense/config.json", "dense/model.safetensors"])
def test_another_content_under_the_same_path_is_refused_by_file(inputs, name):
    begin(inputs / "run")
    os.utime(name, ns=(1, 1))
    begin(inputs / "run")  # touched, but not changed
    path = Path(name)
    path.write_text("3" * path.stat().st_size)
    with pytest.raises(UserError, match=f"{name} has another content than when this run was begun"):
        begin(inputs / "run")
    path.unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        begin(inputs / "run")
    (inputs / "dense" / "README.md").write_text("what decides nothing may change")


@pytest.mark.parametrize("path", ["rows/*.jsonl", "rows", "r*ws/a*.jsonl", "rows/**/*.jsonl"])
def test_files_of_a_pattern_and_of_a_folder_are_compared(inputs, path):
    rows = inputs / "rows"
    (rows / ".cache").mkdir(parents=True)
    for name in ("a.jsonl", "ab.jsonl"):
        (rows / name).write_text("[1]")

    def again(where=path):
        begin(inputs / "run", f"data.train=[{{path: '{where}', images: .}}]")

    again()
    (rows / ".cache" / "hidden.jsonl").touch()
    os.utime(rows / "a.jsonl", ns=(1, 1))  # touched, but not changed
    again()
    (rows / "a.jsonl").write_text("[2]")
    with pytest.raises(UserError, match=r"data.train.0.path: rows/a.jsonl has another content than when"):
        again()
    (rows / "a.jsonl").unlink()
    with pytest.raises(UserError, match=r"data.train.0.path: rows/a.jsonl is missing"):
        again()
    (rows / "a.jsonl").write_text("[1]")
    (rows / "ac.jsonl").write_text("[1]")
    with pytest.raises(UserError, match=r"data.train.0.path: rows/ac.jsonl was not there when this run was begun"):
        again()
    (rows / "ac.jsonl").unlink()
    if path.startswith("rows"):
        rows.rename(inputs / "moved")
        again(path.replace("rows", "moved"))


@pytest.fixture
def served(inputs, hub, monkeypatch):
    """A Hub that files are downloaded from, to a cache that is empty."""
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(inputs / "cache"))
    return hub


def test_a_model_on_the_hub_may_change_its_card_alone(inputs, served, monkeypatch):
    model = served.repos["models", "me/model"] = Repo()
    files = {"config.json": b"{}", "model.safetensors": b"1", "README.md": b"of today"}
    first = model.commit("main", files)
    begin(inputs / "run", "model.path=me/model")
    assert json.loads((inputs / "run" / "inputs.json").read_text())["model.path"] == {"commit": first}
    with pytest.raises(UserError, match="model.path: got 'dense', before 'me/model'"):
        begin(inputs / "run")
    model.commit("main", files | {"README.md": b"of tomorrow"})
    begin(inputs / "run", "model.path=me/model")
    last = model.commit("main", files | {"model.safetensors": b"2"})
    changed = f"model.safetensors: me/model is commit {last} on the Hub, and was {first} when this run was begun"
    with pytest.raises(UserError, match=f"^model.path: {changed}. Put back"):
        begin(inputs / "run", "model.path=me/model")
    del model.commits[first]
    with pytest.raises(UserError, match=f"^model.path: me/model is commit {last}"):
        begin(inputs / "run", "model.path=me/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # the cache holds the last one
    with pytest.raises(UserError, match=f"^model.path: me/model is commit {last}"):
        begin(inputs / "run", "model.path=me/model")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(inputs / "empty"))
    begin(inputs / "run", "model.path=me/model")  # what cannot be asked is not compared


def test_data_on_the_hub_is_of_one_commit(inputs, served, monkeypatch):
    def again(name):
        begin(inputs / "run", f"data.train=[{{hub: '{name}'}}]")

    rows = served.repos["datasets", "me/set"] = Repo()
    first = rows.commit("main", {"README.md": b"1", "rows.jsonl": b"1"})
    again("me/set:a")
    last = rows.commit("main", {"README.md": b"1", "rows.jsonl": b"2"})
    changed = f"me/set:a is commit {last} on the Hub, and was {first} when this run was begun; me/set:a@{first} names"
    with pytest.raises(UserError, match=f"^data.train.0.hub: {changed}"):
        again("me/set:a")
    again(f"me/set:a@{first}")
    for other in ("me/set:b", "me/other:a"):
        with pytest.raises(UserError, match=f"data.train.0.hub: got '{other}', before 'me/set:a@{first}'"):
            again(other)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(inputs / "empty"))
    again("me/set:a@main")  # what cannot be asked is not compared


def test_another_world_is_refused(inputs, monkeypatch):
    begin(inputs / "run")
    world._digest_of_first_rows.cache_clear()
    begin(inputs / "run")
    world._digest_of_first_rows.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(world, "draw_scene", lambda scene: Image.new("RGB", (8, 8)))
        with pytest.raises(UserError, match="^data.world: this version of the project makes another world than"):
            begin(inputs / "run")
    world._digest_of_first_rows.cache_clear()


def test_large_weights_are_sampled_and_a_change_anywhere_in_a_block_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("training.inputs.fingerprints.SAMPLED", 100)
    monkeypatch.setattr("training.inputs.fingerprints.BLOCK", 4)
    monkeypatch.setattr("training.inputs.fingerprints.BLOCKS", 5)
    for name, is_sampled in (("x.safetensors", True), ("x.parquet", True), ("x.json", False)):
        content = bytearray(range(200))
        path = tmp_path / name
        path.write_bytes(content)
        before = fingerprints(path)[""]
        seen = []
        for place in range(200):
            content[place] ^= 1
            path.write_bytes(content)
            os.utime(path, ns=(1, 1))
            seen.append(not is_unchanged(path, before))
            content[place] ^= 1
        assert seen[:4] == seen[-4:] == [True] * 4
        assert sum(seen) == (20 if is_sampled else 200)


# ---- a folder that is not yet a run's, and one that is deleted ----


def test_a_mistake_does_not_occupy_the_name(inputs):
    def refuse(run):
        raise UserError("no such file")

    with pytest.raises(UserError, match="no such file"):
        execute(
            recipe("data.train=[{path: rovs.json, images: .}]", "seed=3"), [Stage("data", "", refuse)], inputs / "run"
        )
    begin(inputs / "run")
    assert yaml.safe_load((inputs / "run" / "recipe.yaml").read_text())["seed"] == 0


@pytest.mark.parametrize("written", range(5))
@pytest.mark.parametrize("restart", [False, True])
def test_a_kill_at_any_of_the_first_files_leaves_a_folder_that_a_start_takes(inputs, monkeypatch, written, restart):
    count = 0

    def killed(kept):
        def write(path, *arguments):
            nonlocal count
            if count == written:
                path.parent.mkdir(exist_ok=True)
                path.with_name(f".{path.name}.partial").touch()  # as SIGKILL leaves it
                raise InterruptedError
            count += 1
            kept(path, *arguments)

        return write

    with monkeypatch.context() as patch:
        for name in ("write_text", "write_json"):
            patch.setattr(starts, name, killed(getattr(starts, name)))
        with suppress(InterruptedError):
            execute(recipe(), [Stage("one", "", lambda run: {})], inputs / "run")
    begin(inputs / "run", "seed=1" if written < 4 else "seed=0", restart=restart, confirmed=True)


def test_a_kill_while_deleting_leaves_nothing_half(inputs, monkeypatch):
    begin(inputs / "run")
    with monkeypatch.context() as patch:
        patch.setattr(starts.shutil, "rmtree", lambda path: (_ for _ in ()).throw(InterruptedError))
        begin(inputs / "run", restart=True, confirmed=True)  # raises InterruptedError while it deletes
    assert not (inputs / "run").exists() and (inputs / ".run.removed").exists()
    begin(inputs / "run", "seed=5")
    assert not (inputs / ".run.removed").exists()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_restart_asks_on_a_terminal_and_wants_yes_elsewhere(inputs, monkeypatch, capsys):
    begin(inputs / "run")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(
        UserError, match=r"--restart deletes .*run \(1 finished stages, 0 MiB\). There is no term.* --yes"
    ):
        begin(inputs / "run", restart=True)
    for answer in ("\n", "n\n", "what\n"):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        with pytest.raises(UserError, match="--restart: .*run is kept"):
            begin(inputs / "run", restart=True)
    assert (inputs / "run" / "stages" / "data.json").exists()
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    begin(inputs / "run", "seed=4", restart=True)
    assert "Delete it? [y/N]" in capsys.readouterr().out


# ---- signals between trainings ----

WAITS = """
import sys, time
from pathlib import Path
from training import stops
from training.cli import run
from training.recipe.base import BaseRecipe
from training.run import Stage, execute

def wait(run):
    print("inside", flush=True)
    for _ in range(6000):
        time.sleep(0.1)

def main():
    stops.listen(lambda: False)
    done = Stage("done", "done", lambda run: {})
    execute(BaseRecipe(name="run", seed=0), [done, Stage("wait", "wait long", wait)], Path(sys.argv[1]))

run(main)
"""


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow), (signal.SIGINT, 130)]
)
def test_a_signal_ends_a_run_in_one_line(tmp_path, number, code):
    run = subprocess.Popen(
        [sys.executable, "-c", WAITS, "run"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(RECIPES.parent), "RANK": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "inside" not in (line := run.stdout.readline()):
        assert line or run.poll() is None, run.stderr.read()
    run.send_signal(number)
    _, error = run.communicate(timeout=60)
    assert run.returncode == code
    where = f"stopped: {number.name} in stage 2 of 2, wait long."
    assert error.strip() == f"{where} run keeps 1 finished stages; the same command goes on there"
