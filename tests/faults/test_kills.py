"""A run that is killed before any change of its files ends as one that is not, and none is refused.

Python's changes are counted by a run that copies its folder before each of them: that is what SIGKILL would leave
there, as nothing but files outlives a process. Where a file is opened, a second copy has it torn. Each copy is started
again, up to the end of the stage that it is in, and compared with the run that nothing killed at that moment: what
follows depends on the files alone. A few real kills at the same places, and others at random moments, go to the end of
the run.

    SQUINT_PART=0/10 looks at the first tenth of the states, SQUINT_SEED=1 draws other random moments. So several
    processes can share the states, and one that was stopped goes on with the tenths that are left.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.checkpoints.tiny_dense import save_tiny_dense
from tests.faults.file_changes import Change
from tests.faults.runs import Starts, assert_equal, dense_arguments, keep_state, results, sparsify_arguments
from training.recipe.file import RECIPES

PART, PARTS = map(int, os.environ.get("SQUINT_PART", "0/1").split("/"))
SEED = int(os.environ.get("SQUINT_SEED", "0"))
MOMENTS, REAL_KILLS = int(os.environ.get("SQUINT_MOMENTS", "50")), 5


@pytest.fixture(scope="module", params=["sparsify", "dense"])
def starts(request, tmp_path_factory) -> Starts:
    """Starts of a run with all stages of its task."""
    if request.param == "dense":
        return Starts(dense_arguments(tmp_path_factory.mktemp("recipes")))
    return Starts(sparsify_arguments(save_tiny_dense(tmp_path_factory.mktemp("models") / "dense", biases=False)))


class Whole(NamedTuple):
    """A run that nothing killed."""

    found: dict
    """What it found."""
    seconds: float
    """How long it took."""
    changes: list[str]
    """Its changes."""
    states: dict[str, Path]
    """What lay there before them."""
    ends: list[tuple[int, str]]
    """Of each stage the number of the change by which it ends, and its name."""


@pytest.fixture(scope="module")
def whole(starts, tmp_path_factory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    seconds = starts.finish(folder / "once").seconds
    found = results(folder / "once")
    (folder / "states").mkdir()
    ended = starts.start(folder / "copied", before=partial(keep_state, str(folder / "states")))
    assert ended.code == 0, ended.log[-3000:]
    assert_equal(results(folder / "copied"), found)
    changes = (folder / "states" / "changes.txt").read_text().splitlines()
    states = {path.name: path for path in sorted((folder / "states").iterdir()) if path.is_dir()}
    ends = [
        (number, Path(change).stem)
        for number, change in enumerate(changes, start=1)
        if " os.rename " in change and Path(change).parent.name == "stages"
    ]
    return Whole(found, seconds, changes, states, ends)


def kill_at_end(stage: str, change: Change) -> None:
    """Kills a start when a stage is done and its result is not yet there."""
    if change.kind == "os.rename" and Path(change.path).parts[-2:] == ("stages", f"{stage}.json"):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_kill_before_each_change_of_a_file_costs_nothing(starts, whole):
    expected = {stage: results(whole.states[f"{number:04d}"]) for number, stage in whole.ends}
    names = list(whole.states)[PART::PARTS]
    assert len(whole.states) > 100
    failed: list[str] = []
    for count, name in enumerate(names, start=1):
        number, folder = int(name[:4]), whole.states[name]
        stage = next((stage for end, stage in whole.ends if number <= end), None)
        try:
            if stage is None:  # all are done
                starts.finish(folder)
                assert_equal(results(folder), whole.found)
            else:
                ended = starts.start(folder, before=partial(kill_at_end, stage))
                assert ended.code == -signal.SIGKILL, f"ended with {ended.code}: {ended.log[-2000:]}"
                assert_equal(results(folder), expected[stage])
        except AssertionError as error:
            failed.append(f"state {name}, {stage}, {whole.changes[number - 1]}: {str(error)[-1500:]}")
            print(failed[-1], flush=True)
        print(f"{count} of {len(names)} of {len(whole.states)} states, {len(failed)} failed", flush=True)
        shutil.rmtree(folder)
    assert not failed, f"{len(failed)} of {len(names)}"


@pytest.mark.slow
def test_real_kills_leave_the_same(starts, whole, tmp_path):
    for number in random.Random(SEED).sample(range(1, len(whole.changes) + 1), REAL_KILLS):
        folder = tmp_path / str(number)
        assert starts.start(folder, kill_before=number).code == -signal.SIGKILL
        starts.finish(folder)
        assert_equal(results(folder), whole.found)


@pytest.mark.slow
def test_kills_at_random_moments_cost_nothing(starts, whole, tmp_path):
    moments, kills, number, longest = random.Random(SEED), 0, 0, whole.seconds
    while kills < MOMENTS:
        before = kills
        folder = tmp_path / str(number)
        number += 1
        while True:
            ended = starts.start(folder, seconds=moments.uniform(0, longest) if kills < MOMENTS else None)
            if ended.code == 0:
                break
            assert ended.code == -signal.SIGKILL, ended.log[-3000:]
            kills += 1
        if kills == before:  # it was through before its kill
            longest = min(longest, ended.seconds)
        assert_equal(results(folder), whole.found)
        shutil.rmtree(folder)


WRITES = """
import os, shutil, sys
from pathlib import Path
from tests.faults.file_changes import watch

folder = Path(sys.argv[1])
watch(folder, lambda change: print(change.kind, os.path.basename(change.path), change.appends))
(folder / "new").mkdir()
(folder / "new" / "a").write_text("1")
(folder / "new" / "a").read_text()
with (folder / "new" / "a").open("a") as file:
    file.write("2")
(folder / "new" / "a").replace(folder / "b")
(folder.parent / "outside").write_text("")
(folder.parent / "outside").rename(folder / "new" / "c")
shutil.rmtree(folder / "new")
(folder / "b").unlink()
"""


def test_every_change_of_python_is_seen(tmp_path):
    (tmp_path / "seen").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WRITES, tmp_path / "seen"],
        cwd=RECIPES.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "os.mkdir new False",
        "open a False",
        "open a True",
        "os.rename b False",
        "os.rename c False",
        "os.remove c False",
        "os.rmdir new False",
        "os.remove b False",
    ]
