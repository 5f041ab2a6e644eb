"""What all processes that make an index do."""

import gc
import os
import signal
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import multiprocess
import pyarrow as pa
import torch
from datasets import Features


def begin_worker() -> None:
    """In a process that `datasets` started: takes one core, and ends with its parent or at a signal, without a word.

    Such a process has the parent's way to take signals. It would say at length that it was stopped.
    """
    parent = multiprocess.parent_process()
    if parent is None:
        return
    if not parent.is_alive():
        os._exit(1)
    _settle()
    gc.collect()


@cache
def _settle() -> None:
    """Does what a worker does once."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # else garbage is looked for among all that the parent had loaded
    gc.disable()  # it is collected once a batch; in between there is hardly any


def as_table(rows: Sequence[Mapping[str, Any]], features: Features) -> pa.Table:
    """Returns rows as a table of these columns."""
    schema = features.arrow_schema
    return pa.table([pa.array([row[name] for row in rows], schema.field(name).type) for name in schema.names], schema)
