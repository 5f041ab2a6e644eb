"""A run that is killed before any change of its files ends as one that is not, and none is refused.

Python's changes are counted first. Then one run copies its folder before each of them: that is what SIGKILL would leave
there, as nothing but files outlives a process. Where a file is opened, a second copy has it torn. Each copy is started
again and compared with the run that nothing killed. A few real kills at the same places, and others at random moments,
show that copies are as good.

    SQUINT_EVERY=10 looks at a tenth of the states, SQUINT_SEED=1 takes other ones, and other random moments.
"""

import os
import random
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.checkpoints.tiny_dense import save_tiny_dense
from tests.faults.runs import Starts, assert_equal, dense_arguments, keep_state, results, sparsify_arguments
from training.recipe.file import RECIPES

EVERY, SEED = int(os.environ.get("SQUINT_EVERY", "1")), int(os.environ.get("SQUINT_SEED", "0"))
MOMENTS, REAL_KILLS = int(os.environ.get("SQUINT_MOMENTS", "50")), 5


@pytest.fixture(scope="module", params=["sparsify", "dense"])
def starts(request, tmp_path_factory) -> Starts:
    """Starts of a run with all stages of its task."""
    if request.param == "dense":
        return Starts(dense_arguments(tmp_path_factory.mktemp("recipes")))
    return Starts(sparsify_arguments(save_tiny_dense(tmp_path_factory.mktemp("models") / "dense", biases=False)))


@pytest.fixture(scope="module")
def whole(starts, tmp_path_factory) -> tuple[dict, Path, float]:
    """What a run found that nothing killed, the states before each of its changes, and how long it took."""
    folder = tmp_path_factory.mktemp("whole")
    starts.finish(folder / "once")  # writes the world, too
    seconds = starts.finish(folder / "again").seconds
    expected = results(folder / "once")
    assert_equal(results(folder / "again"), expected)
    (folder / "cases").mkdir()
    ended = starts.start(folder / "copied", before=partial(keep_state, str(folder / "cases")))
    assert ended.code == 0, ended.log[-3000:]
    assert_equal(results(folder / "copied"), expected)
    return expected, folder / "cases", seconds


@pytest.mark.slow
def test_a_kill_before_each_change_of_a_file_costs_nothing(starts, whole):
    expected, cases, _ = whole
    changes = (cases / "changes.txt").read_text().splitlines()
    folders = sorted(path for path in cases.iterdir() if path.is_dir())
    assert len(folders) > 100
    random.Random(SEED).shuffle(folders)
    failed: list[str] = []
    for number, folder in enumerate(folders[::EVERY]):
        try:
            starts.finish(folder)
            assert_equal(results(folder), expected)
        except AssertionError as error:
            failed.append(f"{folder.name} ({changes[int(folder.name[:4]) - 1]}): {str(error)[-1500:]}")
            print(failed[-1], flush=True)
        shutil.rmtree(folder)
        print(f"{number + 1} of {len(folders[::EVERY])} states, {len(failed)} failed", flush=True)
    assert not failed, f"{len(failed)} of {len(folders[::EVERY])}"


@pytest.mark.slow
def test_real_kills_leave_the_same(starts, whole, tmp_path):
    expected, cases, _ = whole
    count = len((cases / "changes.txt").read_text().splitlines())
    for number in random.Random(SEED).sample(range(1, count + 1), REAL_KILLS):
        folder = tmp_path / str(number)
        assert starts.start(folder, kill_before=number).code == -9
        starts.finish(folder)
        assert_equal(results(folder), expected)


@pytest.mark.slow
def test_kills_at_random_moments_cost_nothing(starts, whole, tmp_path):
    expected, _, seconds = whole
    moments, kills, number = random.Random(SEED), 0, 0
    while kills < MOMENTS:
        folder = tmp_path / str(number)
        number += 1
        while True:
            ended = starts.start(folder, seconds=moments.uniform(0, seconds) if kills < MOMENTS else None)
            if ended.code == 0:
                break
            assert ended.code == -9, ended.log[-3000:]
            kills += 1
        assert_equal(results(folder), expected)
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
