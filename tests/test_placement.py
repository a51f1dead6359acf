"""Placement: lanes, threads and patience of every rank, and what the user is told to mend."""

import pytest

from mpirl.errors import UserError
from mpirl.placement import RankInfo, make_plan, single_threaded

EACH_4 = {"lanes_per_worker": 4}


def one_host(ranks, cores, bound=False):
    """Ranks on one host that share all its cores, or are bound to one core each in turn."""
    of = lambda rank: (rank % cores,) if bound else tuple(range(cores))
    return [RankInfo(rank, "a", of(rank), cores) for rank in range(ranks)]


def two_hosts(cores=4):
    """The learner and a worker on host a, three workers on host b."""
    return [RankInfo(rank, host, tuple(range(cores)), cores) for rank, host in enumerate("aabbb")]


def test_every_worker_has_lanes_and_the_learner_none():
    plan = make_plan(one_host(4, 4), EACH_4)
    assert plan.lanes == (0, 4, 4, 4) and plan.lanes_total == 12
    assert [plan.first_lane(rank) for rank in range(4)] == [0, 0, 4, 8]
    assert plan.lane_rank == [1] * 4 + [2] * 4 + [3] * 4


@pytest.mark.parametrize("total, lanes", [(7, (0, 3, 2, 2)), (3, (0, 1, 1, 1)), (1, (0, 1, 0, 0))])
def test_a_total_is_spread_evenly(total, lanes):
    assert make_plan(one_host(4, 4), {**EACH_4, "lanes_total": total}).lanes == lanes


def test_a_list_gives_every_worker_its_own_number():
    plan = make_plan(one_host(4, 4), {**EACH_4, "lanes": [5, 0, 2]})
    assert plan.lanes == (0, 5, 0, 2)
    assert plan.lane_rank == [1] * 5 + [3] * 2 and plan.first_lane(3) == 5
    assert plan.warnings == ("no lanes on ranks 2: raise placement.lanes_total or start fewer ranks",)


@pytest.mark.parametrize(
    "ranks, settings, message",
    [
        (1, EACH_4, "1 rank fits no plan: .*mpirun -np 2"),
        (3, {"lanes": [1], **EACH_4}, r"placement.lanes=\[1\] names 1 workers, this world has 2"),
        (3, {"lanes": [1, 1], "lanes_total": 2}, "contradict: set one of them to null"),
        (3, {"lanes": [0, 0]}, "the world needs at least one"),
        (3, {"lanes": [3, -1]}, "none may be negative"),
        (3, {"lanes_total": -1}, "none may be negative"),
        (3, {"lanes_per_worker": 0}, "the world needs at least one"),
        (3, {**EACH_4, "worker_threads": 0}, "placement.worker_threads=0: write 1 or more"),
        (3, {**EACH_4, "learner_threads": -2}, "placement.learner_threads=-2"),
    ],
)
def test_settings_that_fit_no_plan_are_refused(ranks, settings, message):
    with pytest.raises(UserError, match=message):
        make_plan(one_host(ranks, 4), settings)


def test_the_learner_takes_its_cores_and_the_workers_of_a_host_share_theirs():
    assert make_plan(one_host(3, 8), EACH_4).threads == (8, 4, 4)
    assert make_plan(one_host(5, 2), EACH_4).threads == (2, 1, 1, 1, 1)
    assert make_plan(two_hosts(), EACH_4).threads == (4, 4, 1, 1, 1)
    assert make_plan(one_host(4, 4, bound=True), EACH_4).threads == (1, 1, 1, 1)


def test_threads_can_be_fixed():
    assert make_plan(one_host(3, 8), {**EACH_4, "learner_threads": 3, "worker_threads": 2}).threads == (3, 2, 2)


def test_a_small_model_gets_one_thread_where_nothing_is_fixed():
    plan = make_plan(one_host(3, 8), EACH_4)
    assert single_threaded(plan, EACH_4).threads == (1, 1, 1)
    assert single_threaded(plan, {"learner_threads": 3, "worker_threads": None}).threads == (3, 1, 1)
    assert single_threaded(plan, EACH_4).lanes == plan.lanes


def test_ranks_wait_patiently_where_cores_are_scarce():
    assert make_plan(one_host(3, 2), EACH_4).patient == (True, True, True)
    assert make_plan(one_host(4, 4, bound=True), EACH_4).patient == (False, False, False, False)
    assert make_plan(one_host(3, 8), {**EACH_4, "learner_threads": 4}).patient == (True, True, True)
    assert make_plan(one_host(3, 8), {"lanes_per_worker": 1, "learner_threads": 4, "worker_threads": 2}).patient == (False,) * 3


def test_patience_is_a_matter_of_each_host():
    settings = {**EACH_4, "learner_threads": 2, "worker_threads": 2}
    assert make_plan(two_hosts(), settings).patient == (False, False, True, True, True)


def test_a_learner_bound_to_one_core_is_told_the_mend():
    warnings = make_plan(one_host(2, 2, bound=True), EACH_4).warnings
    assert len(warnings) == 1
    assert "bound to 1 of 2 cores" in warnings[0] and "--bind-to none" in warnings[0]


def test_ranks_on_one_and_the_same_core_are_told_the_mend():
    warnings = make_plan(one_host(3, 2, bound=True), EACH_4).warnings
    assert "2 ranks on a are bound to the same core 0: start mpirun with --bind-to none" in warnings


def test_a_good_world_has_no_warnings():
    assert make_plan(one_host(3, 2), EACH_4).warnings == ()
    assert make_plan([RankInfo(rank, "a", (0,), 1) for rank in range(1)] + two_hosts()[1:], EACH_4).warnings == ()


def test_a_rank_describes_itself():
    info = RankInfo.here(3)
    assert info.rank == 3 and info.host and 1 <= len(info.cores) and info.host_cores >= 1
    assert RankInfo.here(0, "other").host == "other"
