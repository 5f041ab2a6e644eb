"""Work that all processes of a run share: rank 0 leads, the others follow.

Rank 0 runs a stage's story as if it were alone. Where the story has work that splits over samples, it names a task.
Every rank does the task on its own samples, and rank 0 gets the results of all. So one process decides, nobody looks at
the disk to agree, and no accelerator waits while another works.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from modeling.user_error import UserError
from training.stops import OtherFailed

Result = TypeVar("Result")
Item = TypeVar("Item")
OnAllRanks = Callable[..., list[Any]]
"""Takes a task's name and arguments, does it on every rank, and returns the results in the order of ranks."""


_patient_group: dist.ProcessGroup | None = None
"""All ranks, on the CPU, for messages that may be hours apart. None takes the default group."""
_story_goes_on = False
"""Whether this is rank 0 in a story, where the other ranks take part in tasks alone."""


def open_patient_group(timeout: timedelta) -> None:
    """Makes the group over which ranks wait for each other between and within stages. Every rank calls this.

    The default group also serves the collectives of a training, where a rank that does not come has died.
    """
    global _patient_group
    _patient_group = dist.new_group(backend="gloo", timeout=timeout)


def wait_for_rank_0() -> None:
    """Waits until all ranks have come here. On the CPU, since an NCCL barrier would keep accelerators busy."""
    _check_that_all_come()
    if dist.is_initialized():
        dist.barrier(group=_patient_group)


def rank() -> int:
    """Returns this process's number among the processes of the run, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Returns how many processes the run has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own_share(items: Sequence[Item]) -> list[tuple[int, Item]]:
    """Returns the items that are this rank's, each with its number in the sequence."""
    return [(number, item) for number, item in enumerate(items) if number % world_size() == rank()]


def own_share_by_cost(items: Sequence[Item], cost: Callable[[Item], float]) -> list[tuple[int, Item]]:
    """Returns the items that are this rank's where all ranks shall be busy equally long, the dearest first.

    Each item goes to the rank that has least, in the order of their costs (Graham 1969, longest processing time first).

    Args:
        items: the same ones on every rank.
        cost: about how long an item takes, in any unit.
    """
    busy, own = [0.0] * world_size(), []
    for number, item in sorted(enumerate(items), key=lambda pair: cost(pair[1]), reverse=True):
        idlest = busy.index(min(busy))
        busy[idlest] += cost(item)
        if idlest == rank():
            own.append((number, item))
    return own


def in_order(shares: Sequence[Sequence[tuple[int, Result]]]) -> list[Result]:
    """Returns the results of all ranks' shares in the order of their numbers."""
    return [result for _, result in sorted((pair for share in shares for pair in share), key=lambda pair: pair[0])]


def from_rank_0(value: Result) -> Result:
    """Returns rank 0's value on every rank. Every rank calls this."""
    _check_that_all_come()
    return _broadcast(value) if world_size() > 1 else value


def of_all_ranks(value: Result) -> list[Result]:
    """Returns the values of all ranks, in their order, on every rank. Every rank calls this."""
    _check_that_all_come()
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_patient_group)
    return values


def any_rank(value: bool) -> bool:
    """Returns whether `value` is true on any rank. Every rank calls this; it is cheap enough for every step."""
    _check_that_all_come()
    if world_size() == 1:
        return value
    found = torch.tensor(int(value))
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_patient_group)
    return bool(found)


def alone(tasks: Mapping[str, Callable[..., Any]]) -> OnAllRanks:
    """Returns a function that does tasks in this process alone."""
    return lambda name, *arguments: [tasks[name](*arguments)]


def led_by_rank_0(tasks: Mapping[str, Callable[..., Any]], story: Callable[[OnAllRanks], Result]) -> Result | None:
    """Runs `story` on rank 0, which may have tasks done by all ranks; every rank calls this.

    Args:
        tasks: what the story may ask for. Arguments and results travel between processes, so they are on the CPU.
        story: takes a function that does a task on all ranks.

    Returns:
        What the story returns, on rank 0. None on the others.

    Raises:
        Whatever a task or the story raises. A task's error is raised on rank 0 too. OtherFailed is raised on the other
        ranks if rank 0 has an error.
    """
    if world_size() == 1:
        return story(alone(tasks))
    if rank() != 0:
        _follow(tasks)
        return None

    def on_all_ranks(name: str, *arguments: Any) -> list[Any]:
        _broadcast((name, arguments))
        with _story(False):
            return _gathered(tasks[name], arguments)

    failed = False
    try:
        with _story(True):
            return story(on_all_ranks)
    except Exception:
        failed = True
        raise
    finally:
        _broadcast(failed)


@contextmanager
def _story(goes_on: bool) -> Iterator[None]:
    """Says whether rank 0 is in a story, until the context ends."""
    global _story_goes_on
    before, _story_goes_on = _story_goes_on, goes_on
    try:
        yield
    finally:
        _story_goes_on = before


def _check_that_all_come() -> None:
    """Raises RuntimeError where rank 0 would wait for the others for ever."""
    if _story_goes_on:
        raise RuntimeError("only rank 0 comes here: have this done as a task, or by a stage that is `distributed`")


def _follow(tasks: Mapping[str, Callable[..., Any]]) -> None:
    """Does what rank 0 asks for, until its story has ended. An error of a task is raised then.

    A mistake of the user's, and what a file system refuses, is told by rank 0 alone.
    """
    first_error: Exception | None = None
    while isinstance(asked := _broadcast(), tuple):
        name, arguments = asked
        try:
            _gathered(tasks[name], arguments)
        except Exception as error:  # rank 0 knows of it, and ends its story
            first_error = first_error or error
    if first_error is not None and not isinstance(first_error, UserError | OSError):
        raise first_error
    if asked:
        raise OtherFailed


def _broadcast(message: Any = None) -> Any:
    """Returns rank 0's message on every rank."""
    box = [message]
    dist.broadcast_object_list(box, src=0, device="cpu", group=_patient_group)
    return box[0]


def _gathered(task: Callable[..., Any], arguments: Sequence[Any]) -> list[Any]:
    """Does a task and returns the results of all ranks on rank 0.

    An error travels like a result: else rank 0 would wait for one that never comes.
    """
    error: Exception | None = None
    try:
        result = task(*arguments)
    except Exception as raised:
        error, result = raised, None
    gathered: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object((result, error), gathered, group=_patient_group)
    if error is not None:
        raise error
    for number, (_, other) in enumerate(gathered or ()):
        if other is not None:
            # The door to the command line reads an OSError's number and file.
            raise other if isinstance(other, OSError) else type(other)(f"rank {number}: {other}")
    return [result for result, _ in gathered or ()]
