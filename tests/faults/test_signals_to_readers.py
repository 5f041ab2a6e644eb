"""A signal to all processes of a run that reads its data with several of them ends it in one line, and none stays."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.checkpoints.tiny_dense import save_tiny_dense
from training.recipe.file import RECIPES

READS_SLOWLY = """
import sys, time
import data.index.build, data.index.rows
import train
from training import cli

data.index.build._ROWS_PER_PROCESS, data.index.build._ROWS_AT_ONCE = 6, 1
read = data.index.rows.ReadRows.__call__
data.index.rows.ReadRows.__call__ = lambda *arguments: time.sleep(0.5) or read(*arguments)
cli.run(train.main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
def test_a_signal_while_several_processes_read_is_one_line(tmp_path, number, code):
    dense = save_tiny_dense(tmp_path / "dense", biases=False)
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(
            [sys.executable, "-c", READS_SLOWLY, "--recipe", "debug", "name=run", f"model.path={dense}"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(RECIPES.parent)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    readers: list[psutil.Process] = []
    while len(readers) < 3:  # and one that holds their queue
        assert run.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
        readers = psutil.Process(run.pid).children(recursive=True)
    time.sleep(1)
    os.killpg(run.pid, number)
    assert run.wait(timeout=60) == code
    _, alive = psutil.wait_procs(readers, timeout=30)
    log_text = (tmp_path / "log").read_text()
    said = [line for line in log_text.splitlines() if line.startswith("stopped: ")]
    assert not alive and "Traceback" not in log_text, log_text
    assert len(said) == 1 and said[0].startswith(f"stopped: {number.name} in stage 1 of 9, read and check the data.")
