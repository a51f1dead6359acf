"""The thread transport: a world in one process."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mpirl.errors import RankFailed, RankSilent
from mpirl.transport.threads import ThreadGroup, run_threads

sys.path.insert(0, str(Path(__file__).parents[1] / "mpi"))
from transport_claims import CLAIMS  # noqa: E402


def gather_one_lane(group: ThreadGroup) -> None:
    whole = {"reward": np.zeros((group.size, 3))} if group.rank == 0 else None
    group.gather({"reward": np.ones((1, 3))}, whole, [1] * group.size)


def ends_within(seconds: float, thread_name: str) -> bool:
    """Whether the thread of that name, if any lives, ends in time."""
    for thread in threading.enumerate():
        if thread.name == thread_name:
            thread.join(seconds)
            return not thread.is_alive()
    return True


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_claims_hold_in_threads(claim, size: int) -> None:
    run_threads(size, claim, deadline=20.0)


def test_results_come_in_rank_order_and_rank_0_is_the_calling_thread() -> None:
    results = run_threads(3, lambda group: (group.rank, group.size, threading.current_thread() is threading.main_thread()))
    assert results == [(0, 3, True), (1, 3, False), (2, 3, False)]


def test_deadline_names_the_silent_ranks() -> None:
    release = threading.Event()

    def target(group: ThreadGroup) -> None:
        if group.rank in (1, 3):
            release.wait(30)
        gather_one_lane(group)

    start = time.monotonic()
    with pytest.raises(RankSilent, match="gather: no sign of rank 1 on host .*, rank 3 on host [^,]* for 0.3 s"):
        run_threads(4, target, deadline=0.3)
    assert time.monotonic() - start < 5
    release.set()
    assert ends_within(5, "rank 1") and ends_within(5, "rank 2")


def test_slow_rank_that_gives_signs_of_life_is_waited_for() -> None:
    def target(group: ThreadGroup) -> None:
        for _ in range(10 if group.rank == 1 else 0):
            time.sleep(0.1)
            group.heartbeat()
        gather_one_lane(group)

    run_threads(3, target, deadline=0.4)


def test_rank_that_does_not_finish_is_named() -> None:
    def target(group: ThreadGroup) -> None:
        if group.rank == 2:
            time.sleep(1.5)

    with pytest.raises(RankSilent, match="end of the run: no sign of rank 2"):
        run_threads(3, target, deadline=0.2)


def test_exception_of_a_rank_reaches_rank_0_with_its_traceback_and_ends_the_others() -> None:
    def target(group: ThreadGroup) -> None:
        if group.rank == 1:
            raise LookupError("lost my lanes")
        gather_one_lane(group)

    with pytest.raises(RankFailed, match="lost my lanes") as caught:
        run_threads(3, target)
    assert caught.value.rank == 1
    assert "Traceback" in caught.value.report and "in target" in caught.value.report
    assert ends_within(5, "rank 2")


def test_exception_in_a_split_group_ends_the_whole_world() -> None:
    def target(group: ThreadGroup) -> None:
        part = group.split(group.rank % 2)
        if group.rank == 3:
            raise LookupError("lost my lanes")
        part.exchange(None)
        group.exchange(None)

    with pytest.raises(RankFailed, match="rank 3 .*lost my lanes|lost my lanes") as caught:
        run_threads(5, target)
    assert caught.value.rank == 3
    assert ends_within(5, "rank 1")


def test_failure_report_reaches_rank_0() -> None:
    def target(group: ThreadGroup) -> None:
        if group.rank == 2:
            group.fail("the dog ate it")
        else:
            gather_one_lane(group)

    with pytest.raises(RankFailed, match="the dog ate it") as caught:
        run_threads(3, target)
    assert caught.value.rank == 2


def test_exception_of_rank_0_is_raised_as_it_is() -> None:
    def target(group: ThreadGroup) -> None:
        if group.rank == 0:
            raise ZeroDivisionError
        gather_one_lane(group)

    with pytest.raises(ZeroDivisionError):
        run_threads(3, target)
    assert ends_within(5, "rank 1") and ends_within(5, "rank 2")


def test_keyboard_interrupt_on_rank_0_ends_the_world() -> None:
    def target(group: ThreadGroup) -> None:
        if group.rank == 0:
            raise KeyboardInterrupt
        gather_one_lane(group)

    with pytest.raises(KeyboardInterrupt):
        run_threads(2, target)
    assert ends_within(5, "rank 1")


@pytest.mark.parametrize("aborter", [0, 1])
def test_abort_ends_the_world_with_the_exit_code(aborter: int) -> None:
    def target(group: ThreadGroup) -> None:
        if group.rank == aborter:
            group.abort(7)
        gather_one_lane(group)

    with pytest.raises(SystemExit) as caught:
        run_threads(3, target)
    assert caught.value.code == 7
    assert ends_within(5, "rank 2")


def test_waiting_ranks_use_no_cpu() -> None:
    def target(group: ThreadGroup) -> float:
        used = time.process_time()
        if group.rank == 1:
            time.sleep(0.5)
        group.exchange(None)
        return time.process_time() - used

    assert max(run_threads(3, target)) < 0.15
