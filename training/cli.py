"""How every command line ends: a user's mistake gives one line and exit code 2.

Only `UserError` is caught. Any other error is a mistake in this project, and keeps its traceback.
"""

import sys
from collections.abc import Callable
from typing import NoReturn

from modeling.user_error import UserError


def run(main: Callable[[], None]) -> NoReturn:
    """Calls `main` and exits with code 0.

    If `main` raises UserError, the exit code is 2 and one line `error: ...` is written to stderr.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
