"""What the file system refuses, and Ctrl-C, end a run in one line in each stage. It goes on when that is mended."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.checkpoints.tiny_dense import save_tiny_dense
from tests.faults.file_changes import Change
from tests.faults.runs import Starts, assert_equal, results, sparsify_arguments
from training.recipe.file import RECIPES

SIZES = int(os.environ.get("SQUINT_SIZES", "10"))
"""Number of disks that are too small."""
REFUSALS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR)


def note(file: str, change: Change) -> None:
    with open(file, "a") as noted:
        noted.write(f"{change.kind} {change.path}\n")


class In:
    """Does something before a change of a stage: the first from `number` on that opens or renames a file.

    An error of another may be ignored, as that of a folder that is there. The stage begins when the file `after` has
    been renamed.
    """

    def __init__(self, after: str, number: int, refusal: int | None = None):
        self.after, self.number, self.refusal = after, number, refusal
        self.begin: int | None = None

    def __call__(self, change: Change) -> None:
        if change.kind == "os.rename" and change.path.endswith(f"/{self.after}"):
            self.begin = change.number
            return
        if self.begin is None or change.number < self.begin + self.number or change.kind not in ("open", "os.rename"):
            return
        self.begin = None
        if self.refusal is None:
            os.kill(os.getpid(), signal.SIGINT)
        else:
            raise OSError(self.refusal, os.strerror(self.refusal), change.path)


@pytest.fixture(scope="module")
def starts(tmp_path_factory) -> Starts:
    return Starts(sparsify_arguments(save_tiny_dense(tmp_path_factory.mktemp("models") / "dense", biases=False)))


@pytest.fixture(scope="module")
def whole(starts, tmp_path_factory) -> tuple[dict, list[tuple[str, int]]]:
    """What a run finds, and of each of its stages the file by which it begins and its number of changes."""
    folder = tmp_path_factory.mktemp("whole")
    ended = starts.start(folder / "run", before=partial(note, str(folder / "changes")))
    assert ended.code == 0, ended.log[-3000:]
    stages: list[tuple[str, int]] = []
    after, begin = None, 0
    for number, line in enumerate((folder / "changes").read_text().splitlines(), start=1):
        path = Path(line.split(" ", 1)[1])
        if line.startswith("os.rename ") and (path.name == "starts.jsonl" or path.parent.name == "stages"):
            if after is not None:
                stages.append((after, number - begin))
            after, begin = path.name, number
    return results(folder / "run"), stages


def assert_one_line(ended, code: int, *words: str) -> None:
    assert ended.code == code, ended.log[-3000:]
    assert len(ended.said) == 1 and "Traceback" not in ended.log, ended.log[-3000:]
    assert all(word in ended.said[0] for word in words), ended.said


@pytest.mark.slow
def test_what_the_file_system_refuses_is_one_line_in_each_stage(starts, whole, tmp_path):
    """Each start does the stage that the last one was refused in, and is refused in the next."""
    expected, stages = whole
    for place, (after, count) in enumerate(stages):
        refusal = REFUSALS[place % len(REFUSALS)]
        ended = starts.start(tmp_path / "run", before=In(after, random.Random(place).randint(1, count), refusal))
        print(f"{after}: {ended.said}", flush=True)
        assert_one_line(ended, 2, os.strerror(refusal), "runs/")
    starts.finish(tmp_path / "run")
    assert_equal(results(tmp_path / "run"), expected)


@pytest.mark.slow
def test_ctrl_c_is_one_line_in_each_stage(starts, whole, tmp_path):
    expected, stages = whole
    for place, (after, count) in enumerate(stages):
        ended = starts.start(tmp_path / "run", before=In(after, random.Random(place).randint(1, count)))
        print(f"{after}: {ended.said}", flush=True)
        where = f"stopped: SIGINT in stage {place + 1} of {len(stages)}"
        assert_one_line(ended, 130, where, f"keeps {place} finished stages", "the same command goes on there")
    starts.finish(tmp_path / "run")
    assert_equal(results(tmp_path / "run"), expected)


@pytest.mark.slow
def test_a_full_disk_is_one_line_at_each_size(tmp_path):
    """The disks are in memory, in a name space of mounts that a user may make."""
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], check=False).returncode != 0:
        pytest.skip("a user may not mount disks here")
    done = subprocess.run(
        [*command, sys.executable, "-m", "tests.faults.test_file_system", tmp_path], cwd=RECIPES.parent, check=False
    )
    assert done.returncode == 0


def fill_disks(folder: Path) -> None:
    """Runs on disks of several sizes that are too small, and then goes on where they have become larger."""
    starts = Starts(sparsify_arguments(save_tiny_dense(folder / "dense", biases=False)))
    starts.finish(folder / "whole")
    expected = results(folder / "whole")
    size = sum(path.stat().st_blocks * 512 for path in (folder / "whole").rglob("*"))
    for part in range(SIZES):
        disk = folder / f"disk-{part}"
        (disk / "runs").mkdir(parents=True)
        bytes_ = 65536 + size * part // SIZES * 9 // 10
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={bytes_}", "none", disk / "runs"], check=True)
        ended = starts.start(disk)
        print(f"{bytes_:,} bytes of {size:,}: {ended.said}", flush=True)
        assert_one_line(ended, 2, "runs/")
        subprocess.run(["mount", "-o", "remount,ro", disk / "runs"], check=True)
        ended = starts.start(disk)
        print(f"read-only: {ended.said}", flush=True)
        assert_one_line(ended, 2, "runs/", "Read-only file system")
        subprocess.run(["mount", "-o", f"remount,rw,size={10 * size}", disk / "runs"], check=True)
        starts.finish(disk)
        assert_equal(results(disk), expected)
        subprocess.run(["umount", disk / "runs"], check=True)


if __name__ == "__main__":
    fill_disks(Path(sys.argv[1]))
