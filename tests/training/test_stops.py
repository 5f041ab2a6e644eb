"""How a process ends that was told to, or that met an error."""

import subprocess
import sys

from training.recipe.file import RECIPES

FAILS = """
from functools import partial
from torch.utils.data import DataLoader
from training import stops

stops.listen(lambda: False)
batches = iter(DataLoader(range(100), num_workers=1, worker_init_fn=partial(stops.deaf, None)))
next(batches)
raise RuntimeError("a mistake in a training")
"""


def test_an_error_ends_the_process_although_workers_hear_no_signal():
    done = subprocess.run([sys.executable, "-c", FAILS], cwd=RECIPES.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.rstrip().endswith("RuntimeError: a mistake in a training")
