"""What every fuzz test holds its cases to: one line or a result, within the time, and nothing done outside."""

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from modeling.user_error import UserError

Result = TypeVar("Result")
SECONDS = 20
"""A case that takes longer hangs."""
MEMORY = 2 * 2**30
"""Bytes that the cases of a child may take beside what its parent has."""
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn")
"""Audit events by which other programs are started."""
CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.truncate", "shutil.rmtree")
"""Audit events by which files are changed, beside opening one to write."""

_watched: list[str] | None = None


def refused(case: Callable[[], Any]) -> str | None:
    """Returns the line by which a case is refused; None if it is accepted.

    Anything else that is raised goes on, as does a line that is too long or no line.
    """
    try:
        case()
    except UserError as error:
        message = str(error)
        assert 0 < len(message) < 480, (len(message), message)
        assert message.isprintable(), message
        return message
    return None


@contextmanager
def alarm() -> Iterator[None]:
    """Raises TimeoutError inside, where it takes longer than a case may."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def nothing_done() -> Iterator[None]:
    """Fails if a program is started inside, or a file written or changed."""
    global _watched
    if not hasattr(sys, "_fuzz_audit"):
        sys._fuzz_audit = True
        sys.addaudithook(_watch)
    _watched = []
    try:
        yield
        assert not _watched, _watched
    finally:
        _watched = None


def _watch(event: str, arguments: tuple) -> None:
    if _watched is None:
        return
    if event == "open":
        path, _, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        if writes and str(path) != os.devnull:
            _watched.append(f"{path} is written")
    elif event in FORBIDDEN or event in CHANGES:
        _watched.append(f"{event} {arguments}")


def in_children(cases: Sequence[Any], check: Callable[[Any], str | None], at_once: int = 50) -> list[str | None]:
    """Returns what `check` returns for each case, called in forked processes of little time and memory.

    Raises:
        AssertionError: a check raised something, took too long, or ended its process.
    """
    found: list[str | None] = []
    for start in range(0, len(cases), at_once):
        found += _in_child(cases[start : start + at_once], check, start)
    return found


def _in_child(cases: Sequence[Any], check: Callable[[Any], str | None], first: int) -> list[str | None]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as lines:
            try:
                _limit_memory()
                for case in cases:
                    signal.alarm(SECONDS)
                    said = check(case)
                    lines.write(f"{'' if said is None else said}\n")
                    lines.flush()
            except BaseException as error:
                lines.write(f"RAISED {type(error).__name__} {' '.join(str(error).split())}\n")
                lines.flush()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as lines:
        said = lines.read().split("\n")[:-1]
    _, status = os.waitpid(child, 0)
    if len(said) < len(cases) or status or said[-1].startswith("RAISED"):
        number = len(said) - bool(said and said[-1].startswith("RAISED"))
        raise AssertionError(f"case {first + number}: {cases[number]!r:.300}: status {status}, {said[-1:]}")
    return [line or None for line in said]


def _limit_memory() -> None:
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
