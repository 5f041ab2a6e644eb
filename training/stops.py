"""How a run ends when it is told to: by a scheduler (SIGTERM, SIGUSR1), by Ctrl-C, or by the death of its launcher.

Every file of a run is written whole or not at all, so a run may stop anywhere. A signal raises `Stopped` at once. Only
a training goes on to the end of its step and saves it (`deferred`). Whoever learns of a signal tells all ranks, so that
they stop together, whether all of them got it or only one.

A launcher may die alone: `deepspeed` does not pass a signal on to what it started. Its death counts as SIGTERM.

A rank that ends by an error tells the others first. What they meet then, most often a connection that was closed, is
no news, so that the one which met the error alone says so.

transformers has `enable_jit_checkpoint` for this. It is not used, as each rank would decide alone at which step it
saves, and saving is a collective. It also knows SIGTERM only, and lets the script go on as if the training had ended.
"""

import atexit
import multiprocessing
import multiprocessing.util  # registers its own end, before which ours must come
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

FAILED, STOPPED, INTERRUPTED = 2, os.EX_TEMPFAIL, 128 + signal.SIGINT
"""Exit codes: after what a user can mend, or where another rank failed; after SIGTERM, SIGUSR1 or the death of the
launcher (75); and after Ctrl-C (130)."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What tells a process to stop."""
INTERVAL = 0.5
"""Seconds between two looks at the launcher and at what other ranks know."""
PATIENCE = 10.0
"""Seconds that a rank which stops, or fails, waits until all others know of it."""
LAST_PATIENCE = 30.0
"""Seconds in which a rank must end after another has failed. One that waits in NCCL's code would wait for ever."""

_received: signal.Signals | None = None
_deferred = False
_store: Any = None
_watcher: threading.Thread | None = None
_over = threading.Event()
_failed_here = False
_failed_elsewhere = threading.Event()


class Stopped(BaseException):
    """The run was told to stop. This is no error, so no `except Exception` may take it for one."""


class OtherFailed(Exception):
    """Another rank has ended with an error, and says so. This one ends too, without a word."""


def listen(launcher_has_died: Callable[[], bool]) -> None:
    """From now on a signal stops this process in order. Call this once, in the main thread, before others start.

    Args:
        launcher_has_died: returns whether a launcher of this process has ended without a word (training/launchers.py).
    """
    for number in SIGNALS:
        signal.signal(number, _receive)
    atexit.register(_end_workers)
    # A signal to a process that has just been forked waits until that has its own handlers. Python would drop it.
    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS),
        after_in_child=_leave_stops_to_parent,
    )
    global _watcher
    _watcher = threading.Thread(target=_watch, args=(launcher_has_died,), daemon=True)
    _watcher.start()


def leave() -> None:
    """Ends what `listen` began in the background, as the run is over.

    A thread that is in the store when the interpreter ends would end the process with `terminate called`.
    """
    _over.set()
    if _watcher is not None:
        _watcher.join(PATIENCE)


def join(store: Any, world_size: int) -> None:
    """Lets the ranks of a run tell each other of signals.

    Args:
        store: a `torch.distributed.Store` that all ranks reach, of which this takes a connection of its own.
        world_size: the number of ranks.
    """
    global _store
    _store = (store.clone(), world_size)


def received() -> signal.Signals | None:
    """Returns the signal that told this process to stop; None if there was none."""
    return _received


def received_at_last() -> signal.Signals | None:
    """Returns the signal that ended a run which an exception ends; None if there was none. From now on none raises.

    The exception may be a connection that another rank closed, told to stop by a signal that is not yet known here. So
    with several ranks this waits for as long as such a signal takes to be known.
    """
    global _deferred
    _deferred = True
    end = time.monotonic() + 2 * INTERVAL
    while _received is None and _store is not None and time.monotonic() < end:
        time.sleep(INTERVAL / 5)
    return _received


def other_has_failed() -> bool:
    """Returns whether this rank knows that another one has ended with an error."""
    return _failed_elsewhere.is_set()


def first_to_fail() -> bool:
    """Tells all ranks that this one ends with an error. Returns whether none of them has said so before."""
    global _failed_here, _deferred
    if _store is None:
        return True
    _deferred = True  # a signal that comes now would take the place of the message
    if other_has_failed():
        return False
    store, _ = _store
    _failed_here = True  # before the watcher can see it in the store
    try:
        return store.add("stops/failed", 1) == 1
    except RuntimeError:  # rank 0 holds the store, and was killed
        return True


def raise_if_received() -> None:
    """Raises Stopped if this process was told to stop. An exception out of a signal handler can get lost in a library's
    destructor, so this is asked between stages too."""
    if _received is not None:
        raise Stopped


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, SIGTERM and SIGUSR1 raise nothing. `received` tells of them. At the end, Stopped is raised for them."""
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False
    raise_if_received()


def wait_until_all_know() -> None:
    """After a signal or an error: waits until all ranks know of it. To others, one that left before would crash."""
    if _store is None or not (_failed_here or _received):
        return
    store, world_size = _store
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if store.add("stops/known", 0) >= world_size:
                return
        except RuntimeError:  # rank 0 holds the store, and has left
            return
        time.sleep(INTERVAL / 5)


def _end_workers() -> None:
    """Kills workers that an error has left behind. The interpreter would wait for them, as they hear no signal."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would take their ends for another error
    for worker in multiprocessing.active_children():
        worker.kill()


def _leave_stops_to_parent() -> None:
    """A process that was forked ends as its parent tells it, by SIGTERM. Of other signals it would write a traceback.

    It ends in order, as it may hold a lock of a queue that its parent waits for.
    """
    for ignored in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # one that has waited ends it here, where it holds nothing
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(STOPPED))


def deaf(worker_init: Any, number: int) -> None:
    """Begins a worker that loads data: it ends with its parent, not at signals that reach the whole process group.

    Args:
        worker_init: what else begins a worker; None for nothing.
        number: number of the worker.
    """
    for ignored in SIGNALS:
        signal.signal(ignored, signal.SIG_IGN)
    if worker_init is not None:
        worker_init(number)


def _receive(number: int, frame: Any) -> None:
    """Notes the first signal, and raises. Later ones are those of a launcher that ends what it started."""
    global _received
    if number == signal.SIGINT and _received != signal.SIGINT:
        _received = signal.SIGINT
        raise KeyboardInterrupt
    if number == signal.SIGINT:
        os._exit(INTERRUPTED)  # the user does not want to wait
    if _received is None:
        _received = signal.Signals(number)
        if not _deferred:
            raise Stopped


def _watch(launcher_has_died: Callable[[], bool]) -> None:
    """Passes on what this process, its launchers and the other ranks know."""
    told = False
    while not _over.wait(INTERVAL):
        if _received is None and launcher_has_died():
            os.kill(os.getpid(), signal.SIGTERM)
        if _store is None:
            continue
        store, _ = _store
        try:
            if not _failed_here and not other_has_failed() and store.check(["stops/failed"]):
                _failed_elsewhere.set()
                last = threading.Timer(LAST_PATIENCE, lambda: _over.is_set() or os._exit(FAILED))
                last.daemon = True
                last.start()
            if not told and (_received is not None or _failed_here or other_has_failed()):
                if _received is not None:
                    store.set("stops/signal", str(int(_received)))
                store.add("stops/known", 1)
                told = True
            elif _received is None and store.check(["stops/signal"]):
                os.kill(os.getpid(), int(store.get("stops/signal")))
        except RuntimeError:
            return  # rank 0 holds the store, and has left
