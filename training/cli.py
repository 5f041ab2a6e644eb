"""The door of every command line: what a user can cause ends in one line and exit code 2.

`ValueError` is the project's word for bad input, so it alone is caught; anything else is our bug and keeps its traceback.
"""

import sys
from collections.abc import Callable
from typing import NoReturn


def run(main: Callable[[], None]) -> NoReturn:
    """Call `main` and exit: code 0, or one line `error: ...` on stderr and code 2 where it raised ValueError."""
    try:
        main()
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
