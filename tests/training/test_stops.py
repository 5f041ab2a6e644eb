"""How a process ends that was told to, or that met an error."""

import signal
import subprocess
import sys
import threading

import pytest
from torch.distributed import HashStore

from training import stops
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


@pytest.mark.parametrize(("store", "expected"), [(object(), signal.SIGTERM), (None, None)], ids=["ranks", "alone"])
def test_an_error_may_be_known_before_the_signal_of_another_rank_that_caused_it(monkeypatch, store, expected):
    """The signal then raises nothing, as that would take the place of the message."""
    for name, value in (("_store", store), ("_received", None), ("_deferred", False)):
        monkeypatch.setattr(stops, name, value)
    told = threading.Timer(stops.INTERVAL / 2, lambda: stops._receive(signal.SIGTERM, None))
    told.start()
    assert stops.received_at_last() == expected
    told.join()
    assert stops.received() == signal.SIGTERM, "and none was raised"


def test_of_two_ranks_that_fail_one_says_so(monkeypatch):
    store, first = HashStore(), []
    for other_is_heard in (False, False, True):
        for name, value in (("_store", (store, 2)), ("_failed_here", False), ("_deferred", False)):
            monkeypatch.setattr(stops, name, value)
        monkeypatch.setattr(stops, "other_has_failed", lambda heard=other_is_heard: heard)
        first.append(stops.first_to_fail())
    assert first == [True, False, False]
    monkeypatch.setattr(stops, "_store", None)
    assert stops.first_to_fail(), "a process alone"
