"""Several processes of a run, in a test: each is spawned, joins over gloo, and calls one function."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing


def free_port() -> int:
    """Returns a port that nobody listens on. Launchers would all take the same one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_processes(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Returns what `function(*arguments)` returns in each of `count` processes, in the order of ranks.

    It is importable by name, as is all that travels to and from the processes.
    """
    port = free_port()
    with multiprocessing.get_context("spawn").Manager() as manager:
        results = manager.dict()
        multiprocessing.spawn(_process, (count, port, function, arguments, results), nprocs=count)
        return [results[number] for number in range(count)]


def _process(number: int, count: int, port: int, function, arguments, results) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(number), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo")
    results[number] = function(*arguments)
    dist.barrier()
    dist.destroy_process_group()
