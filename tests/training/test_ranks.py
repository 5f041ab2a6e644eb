"""Work shared by processes: the results of one process, in order, and errors that nobody waits for."""

import os
import socket

import pytest
import torch.distributed as dist
from torch import multiprocessing

from modeling.user_error import UserError
from training.ranks import in_order, led_by_rank_0, own_share, rank

ITEMS = list(range(7))


def squares(offset: int) -> list[tuple[int, int]]:
    return [(number, item**2 + offset) for number, item in own_share(ITEMS)]


def fails_on_rank_1() -> None:
    if rank() == 1:
        raise UserError("no such picture")


TASKS = {"squares": squares, "fail": fails_on_rank_1}


def story(on_all_ranks) -> list[list[int]]:
    return [in_order(on_all_ranks("squares", offset)) for offset in (0, 100)]


def failing_story(on_all_ranks):
    return on_all_ranks("fail")


def breaking_story(on_all_ranks):
    on_all_ranks("squares", 0)
    raise UserError("the story ends here")


def process(number: int, count: int, port: int, which, results) -> None:
    os.environ.update(RANK=str(number), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo")
    try:
        results[number] = led_by_rank_0(TASKS, which)
    except UserError as error:
        results[number] = f"UserError: {error}"
    dist.barrier()
    dist.destroy_process_group()


def run(count: int, which) -> dict:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = multiprocessing.get_context("spawn").Manager().dict()
    multiprocessing.spawn(process, (count, port, which, results), nprocs=count)
    return dict(results)


ALONE = [[item**2 + offset for item in ITEMS] for offset in (0, 100)]


def test_alone():
    assert led_by_rank_0(TASKS, story) == ALONE


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_give_the_results_of_one(count):
    assert run(count, story) == {0: ALONE, **dict.fromkeys(range(1, count))}


def test_a_followers_error_ends_both():
    assert run(2, failing_story) == {0: "UserError: rank 1: no such picture", 1: "UserError: no such picture"}


def test_the_leaders_error_lets_the_followers_go():
    assert run(2, breaking_story) == {0: "UserError: the story ends here", 1: None}
