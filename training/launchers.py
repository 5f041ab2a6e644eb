"""The launchers of this process, and whether one of them has died.

`deepspeed` does not pass a signal on to what it started. So its death is looked for (training/stops.py).
"""

import os

import psutil

LAUNCHERS = {"deepspeed", "deepspeed.launcher.launch", "torchrun", "torch.distributed.run"}
"""What the command line of a launcher's process has among its arguments."""


class Launchers:
    """The processes that launched this one, from its parent on. A shell that called the launcher is none."""

    def __init__(self) -> None:
        self._processes: list[psutil.Process] = []
        for parent in psutil.Process().parents():
            try:
                arguments = parent.cmdline()
            except psutil.Error:
                break
            if not LAUNCHERS & {os.path.basename(argument) for argument in arguments}:
                break
            self._processes.append(parent)

    def have_died(self) -> bool:
        """Returns whether any of them has ended."""
        return any(map(_is_dead, self._processes))


def _is_dead(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True
