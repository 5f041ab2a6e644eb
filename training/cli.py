"""How every command line ends: a user's mistake gives one line and exit code 2, and a stop one line and its own code.

So does what a file system refuses, such as a full disk. A reader of the output that has gone, as `head` does, ends it
without a word. Any other error is a mistake in this project, and keeps its traceback.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from modeling.user_error import UserError
from training.stops import FAILED, INTERRUPTED, STOPPED, OtherFailed, Stopped

OF_FILES = frozenset(
    getattr(errno, name)
    for name in (
        "EACCES", "EDQUOT", "EEXIST", "EFBIG", "EIO", "EISDIR", "ELOOP", "EMFILE", "ENAMETOOLONG", "ENFILE", "ENOENT",
        "ENOSPC", "ENOTDIR", "ENOTEMPTY", "EPERM", "EROFS", "ESTALE", "ETXTBSY", "EXDEV",
    )
    if hasattr(errno, name)
)  # fmt: skip
"""Numbers of errors that tell of a file or a disk, which a user can mend. Others are of networks, or ours."""


def run(main: Callable[[], None]) -> NoReturn:
    """Calls `main` and exits with code 0.

    If `main` raises UserError, or OSError for what a file system refuses, the exit code is 2 and one line `error: ...`
    is written to stderr. If a signal ends it, the code is that of training/stops.py and the line is `stopped: ...`.
    """
    try:
        main()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _output_is_broken():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left goes nowhere as Python ends
        sys.exit(128 + signal.SIGPIPE)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(FAILED)
    except OtherFailed:
        sys.exit(FAILED)
    except (Stopped, KeyboardInterrupt) as stop:
        if stop.args or os.environ.get("RANK", "0") == "0":  # only one rank of several says it
            print(f"\nstopped: {' '.join(map(str, stop.args)) or 'Ctrl-C'}", file=sys.stderr)
        sys.exit(STOPPED if isinstance(stop, Stopped) else INTERRUPTED)
    except Exception as error:
        refused = _refusal(error)
        if refused is None:
            raise
        print(f"error: {refused}", file=sys.stderr)
        sys.exit(FAILED)
    sys.exit(0)


def _refusal(error: BaseException) -> str | None:
    """Returns in one line what a file system refused; None if the error is another.

    Libraries wrap such an error in one of their own.
    """
    seen: BaseException | None = error
    while seen is not None and not (isinstance(seen, OSError) and seen.errno in OF_FILES):
        seen = seen.__cause__
    if seen is None:
        return None
    files = [str(name) for name in (seen.filename, seen.filename2) if name is not None]
    return " ".join(f"{' -> '.join(files) or 'a file'}: {seen.strerror}".split())


def _output_is_broken() -> bool:
    """Returns whether it was this process's output that nobody reads, and no other pipe."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return True
    return False
