"""Takes the seconds of several calls. The calls run in turn, so a machine that slows down slows all of them."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def interleaved_seconds(calls: dict[str, Callable], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Returns the seconds of each call, `repeats` values by name.

    Every round runs each call once. A first round is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            seconds = seconds_of(call, device)
            if turn > 0:
                times[name].append(seconds)
    return times


@torch.inference_mode()
def seconds_of(call: Callable, device: torch.device) -> float:
    """Returns the seconds of one call, including the work that it leaves to the device."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Returns the median, the least and the greatest of repeated measurements."""
    return {"median": statistics.median(seconds), "least": min(seconds), "greatest": max(seconds)}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
