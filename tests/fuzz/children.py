"""Runs a case in a forked child: an alarm and a limit of memory end it, and what it opens is watched."""

import os
import pickle
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modeling.user_error import UserError

SECONDS = 20
MEMORY = 4 * 2**30
"""How much more memory than its parent a child may map."""
FORBIDDEN = ("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")
"""Audit events of code that a file names, of programs that are started, and of the network."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        kind: "accepted", "refused", "traceback" or "killed".
        text: the message, the traceback or the number of the signal.
        seen: what the case must not do and did.
    """

    kind: str
    text: str
    seen: tuple[str, ...]


def in_child(case: Callable[[], object], own: Path) -> Outcome:
    """Runs `case`, which may write into the folder `own` alone."""
    with tempfile.TemporaryFile() as file:
        pid = os.fork()
        if pid == 0:
            try:
                pickle.dump(_outcome(case, own), file)
                file.flush()
            finally:
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        file.seek(0)
        if os.WIFSIGNALED(status):
            return Outcome("killed", f"signal {os.WTERMSIG(status)}", ())
        return Outcome(*pickle.load(file))


def _outcome(case: Callable[[], object], own: Path) -> tuple[str, str, tuple[str, ...]]:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    seen: list[str] = []
    sys.addaudithook(lambda event, arguments: _watch(seen, own, event, arguments))
    try:
        case()
    except UserError as error:
        return "refused", str(error), tuple(seen)
    except BaseException:
        return "traceback", traceback.format_exc(), tuple(seen)
    return "accepted", "", tuple(seen)


def _watch(seen: list[str], own: Path, event: str, arguments: tuple) -> None:
    if event in FORBIDDEN:
        seen.append(f"{event} {arguments}"[:300])
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        path, _, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        place = Path(os.fsdecode(path)).absolute()
        if writes and not place.is_relative_to(own) and place != Path(os.devnull) and "__pycache__" not in place.parts:
            seen.append(f"writes {place}")
        if "secret" in place.name or place.suffix in (".bin", ".pt", ".pkl"):
            seen.append(f"reads {place}")
