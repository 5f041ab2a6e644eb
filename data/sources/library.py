"""What the `datasets` library is asked for, and what it says in the end, in our words."""

from collections.abc import Iterator
from contextlib import contextmanager

from datasets.exceptions import DatasetGenerationError, DatasetsError

from modeling.user_error import UserError


@contextmanager
def in_one_line(name: str) -> Iterator[None]:
    """Turns what `datasets` raises for bad files, names and networks into a UserError of one line.

    Args:
        name: what messages call the source.
    """
    try:
        yield
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        told: BaseException = error
        if isinstance(error, DatasetGenerationError) and error.__cause__ is not None:
            told = error.__cause__  # the error itself only says that the table could not be made
        if isinstance(told, UserError):
            raise told from None
        raise UserError(f"{name}: cannot be read ({' '.join(str(told).split())})") from error
