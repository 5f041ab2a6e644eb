"""What the `datasets` library is asked for, and what it says in the end, in our words."""

from collections.abc import Iterator
from contextlib import contextmanager

from datasets.exceptions import DatasetGenerationError, DatasetsError

from modeling.user_error import UserError

BAD_INPUT = (DatasetsError, OSError, ValueError, RuntimeError)
"""What `datasets` raises for files, names and networks."""
EXAMPLE = "Example of usage:"
"""What stands before code that a message of `datasets` ends with."""
NO_ROWS = "corresponds to no data"
"""What `datasets` says of a table without rows."""


@contextmanager
def in_one_line(name: str) -> Iterator[None]:
    """Turns what `datasets` raises for bad files, names and networks into a UserError of one line.

    Args:
        name: what messages call the source.
    """
    try:
        yield
    except BAD_INPUT as error:
        told: BaseException = error
        if isinstance(error, DatasetGenerationError) and error.__cause__ is not None:
            told = error.__cause__  # the error itself only says that the table could not be made
            if not isinstance(told, BAD_INPUT):
                raise
        if isinstance(told, UserError):
            raise told from None
        said = str(told).partition(EXAMPLE)[0]
        if NO_ROWS in said:
            raise UserError(f"{name}: got no rows, at least one is expected") from None
        raise UserError(f"{name}: cannot be read ({' '.join(said.split())})") from error
