"""The progress of long work: a bar on a terminal, and a line now and then in a file or a pipe.

A bar is drawn again and again over itself. In a scheduler's log that would be one line without end.
"""

import sys
from collections.abc import Iterable

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0
SHARE_BETWEEN_LINES = 0.01
"""A line comes after this time and this share of the work, whichever is later."""
LINE = "{desc}: {n_fmt} of {total_fmt} ({percentage:.0f} %), {rate_fmt}, {elapsed} gone, {remaining} left{postfix}"
LINE_WITHOUT_TOTAL = "{desc}: {n_fmt}, {rate_fmt}, {elapsed} gone{postfix}"


class Progress(tqdm):
    """tqdm for all work of this project. Only rank 0 shows it.

    Args:
        iterable: what is worked through; None where `update` is called instead.
        desc: what is done.
        unit: what is counted, in the singular.
        total: how much there is; None for the length of the iterable.
        initial: how much of it was done before.
    """

    def __init__(
        self, iterable: Iterable | None = None, *, desc: str, unit: str, total: int | None = None, initial: int = 0
    ):
        from training.ranks import rank  # it takes torch, and planners are read without

        self._in_lines = not sys.stderr.isatty()
        self._shown: int | None = None
        if total is None and hasattr(iterable, "__len__"):
            total = len(iterable)
        lines = {
            "mininterval": SECONDS_BETWEEN_LINES,
            "maxinterval": float("inf"),
            "miniters": max(1, (total or 0) * SHARE_BETWEEN_LINES),
            "bar_format": LINE if total else LINE_WITHOUT_TOTAL,
        }
        super().__init__(
            iterable,
            desc=desc,
            unit=unit,
            total=total,
            initial=initial,
            file=sys.stderr,
            disable=rank() != 0,
            dynamic_ncols=not self._in_lines,
            **(lines if self._in_lines else {}),
        )

    def display(self, msg=None, pos=None) -> None:
        """As in tqdm. A line is not written twice."""
        if not self._in_lines:
            super().display(msg, pos)
        elif self.n != self._shown:
            self._shown = self.n
            self.fp.write(f"{self}\n")
            self.fp.flush()

    def clear(self, nolock=False) -> None:
        """As in tqdm. A line that was written stays."""
        if not self._in_lines:
            super().clear(nolock)

    def set_postfix_str(self, s="", refresh=True) -> None:
        """As in tqdm. A line shows the text when the next one comes."""
        super().set_postfix_str(s, refresh and not self._in_lines)

    def close(self) -> None:
        """As in tqdm, with a last line."""
        if self._in_lines and not self.disable:
            self.display()
            self.disable = True
            self._decr_instances(self)
        else:
            super().close()
