"""The door of every command line: what a user can cause ends in one line and exit code 2.

`UserError` alone is caught. Any other error is a defect of ours and keeps its traceback.
"""

import sys
from collections.abc import Callable
from typing import NoReturn

from modeling.user_error import UserError


def run(main: Callable[[], None]) -> NoReturn:
    """Call `main` and exit: code 0, or one line `error: ...` on stderr and code 2 where it raised UserError."""
    try:
        main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
