"""Work shared by processes: the results of one process, in order, and errors that nobody waits for."""

import pytest

from modeling.user_error import UserError
from tests.processes import run_processes
from training import ranks
from training.ranks import in_order, led_by_rank_0, of_all_ranks, own_share, own_share_by_cost, rank
from training.stops import OtherFailed

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


def outcome(which) -> object:
    try:
        return led_by_rank_0(TASKS, which)
    except (UserError, OtherFailed) as error:
        return f"{type(error).__name__}: {error}"


ALONE = [[item**2 + offset for item in ITEMS] for offset in (0, 100)]


def test_alone():
    assert led_by_rank_0(TASKS, story) == ALONE


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_give_the_results_of_one(count):
    assert run_processes(count, outcome, story) == [ALONE, *[None] * (count - 1)]


def test_a_followers_error_ends_both():
    assert run_processes(2, outcome, failing_story) == [
        "UserError: rank 1: no such picture",
        "OtherFailed: ",
    ]


def test_the_leaders_error_lets_the_followers_go():
    assert run_processes(2, outcome, breaking_story) == ["UserError: the story ends here", "OtherFailed: "]


def shares(monkeypatch, world_size: int, share) -> list[list[tuple[int, int]]]:
    """What each rank takes of costs whose groups of four end in a small one."""
    found = []
    for number in range(world_size):
        monkeypatch.setattr(ranks, "world_size", lambda: world_size)
        monkeypatch.setattr(ranks, "rank", lambda number=number: number)
        found.append(share([20, 20, 20, 7] * 6))
    return found


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_are_busy_equally_long(monkeypatch, world_size):
    found = shares(monkeypatch, world_size, lambda costs: own_share_by_cost(costs, lambda cost: cost))
    assert sorted(number for share in found for number, _ in share) == list(range(24))
    busy = [sum(cost for _, cost in share) for share in found]
    assert max(busy) - min(busy) <= 20


def test_ranks_that_take_turns_are_not(monkeypatch):
    busy = [sum(cost for _, cost in share) for share in shares(monkeypatch, 2, own_share)]
    assert busy == [240, 162]


def gathering_story(on_all_ranks):
    on_all_ranks("gather")
    return of_all_ranks(0)


def gather() -> list[int]:
    return of_all_ranks(rank())


def outcome_of_gathering() -> object:
    try:
        return led_by_rank_0({"gather": gather}, gathering_story)
    except (RuntimeError, OtherFailed) as error:
        return f"{type(error).__name__}: {error}"


def test_what_all_ranks_must_do_is_refused_where_rank_0_is_alone():
    """It would wait for ever. In a task all are there."""
    assert run_processes(2, outcome_of_gathering) == [
        "RuntimeError: only rank 0 comes here: have this done as a task, or by a stage that is `distributed`",
        "OtherFailed: ",
    ]
    assert outcome_of_gathering() == [0]
