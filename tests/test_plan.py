"""Placement: lanes, threads and patience of every rank, and what the user is told to mend."""

import os

import pytest

from mpirl.errors import UserError
from mpirl.plan import make_plan, single_threaded
from mpirl.rankinfo import RankInfo

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
        (3, {"lanes": [1, 1], "lanes_total": 2}, "contradict: keep one of them"),
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
    many = {"lanes_per_worker": 256}
    assert make_plan(one_host(3, 8), many).threads == (8, 4, 4)
    assert make_plan(one_host(5, 2), many).threads == (2, 1, 1, 1, 1)
    assert make_plan(two_hosts(), many).threads == (4, 4, 1, 1, 1)
    assert make_plan(one_host(4, 4, bound=True), many).threads == (1, 1, 1, 1)


def test_workers_on_the_learners_cores_are_counted():
    assert make_plan(one_host(3, 2), EACH_4).beside_learner == 2
    assert make_plan(two_hosts(), EACH_4).beside_learner == 1
    assert make_plan(one_host(3, 8), {**EACH_4, "bind": "cores"}).beside_learner == 0


@pytest.mark.parametrize("lanes, threads", [(0, 1), (4, 1), (31, 1), (32, 2), (256, 4)])
def test_a_worker_has_no_more_threads_than_its_lanes_keep_busy(lanes, threads):
    assert make_plan(one_host(3, 8), {"lanes": [lanes, 4]}).threads == (8, threads, 1)


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
    assert make_plan(one_host(3, 8), {"lanes_per_worker": 64, "learner_threads": 4}).patient == (True, True, True)
    assert make_plan(one_host(3, 8), {"lanes_per_worker": 4, "learner_threads": 4}).patient == (False, False, False)
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


def test_lanes_per_host_are_shared_by_its_workers():
    assert make_plan(two_hosts(), {"lanes_per_host": 4}).lanes == (0, 4, 2, 1, 1)


def test_a_rule_changes_lanes_and_the_rest_of_a_total_goes_to_the_others():
    rules = [{"hosts": "a", "lanes": 1}]
    assert make_plan(two_hosts(), {**EACH_4, "rules": rules}).lanes == (0, 1, 4, 4, 4)
    assert make_plan(two_hosts(), {"lanes_total": 7, "rules": rules}).lanes == (0, 1, 2, 2, 2)
    with pytest.raises(UserError, match="rules give away 2 lanes more than that"):
        make_plan(two_hosts(), {"lanes_total": 2, "rules": [{"ranks": "1-2", "lanes": 2}]})


def test_emulator_settings_go_to_the_workers_that_a_rule_matches():
    plan = make_plan(two_hosts(), {**EACH_4, "rules": [{"ranks": "2-3", "emulator": {"frame_skip": 2}}]})
    assert plan.emulator == ({}, {}, {"frame_skip": 2}, {"frame_skip": 2}, {})


def test_workers_see_no_gpu_unless_they_are_given_some_in_turn():
    assert make_plan(two_hosts(), EACH_4).gpus == (None, "", "", "", "")
    assert make_plan(two_hosts(), {**EACH_4, "worker_gpus": [0, 1]}).gpus == (None, "0", "0", "1", "0")
    assert make_plan(two_hosts(), {**EACH_4, "worker_gpus": "inherit"}).gpus == (None,) * 5
    ruled = {**EACH_4, "worker_gpus": [0], "rules": [{"hosts": "a", "gpus": []}, {"ranks": 2, "gpus": [2, 3]}]}
    assert make_plan(two_hosts(), ruled).gpus == (None, "", "2,3", "0", "0")


def test_bound_ranks_have_cores_of_their_own():
    plan = make_plan(two_hosts(cores=8), {"lanes_per_worker": 32, "bind": "cores"})
    assert plan.cores == ((0, 1, 2, 3, 4, 5, 6), (7,), (0, 1), (2, 3), (4, 5)) and plan.bound == (True,) * 5
    assert plan.threads == (7, 1, 2, 2, 2) and plan.patient == (False,) * 5


def test_bound_ranks_take_turns_on_scarce_cores():
    plan = make_plan(one_host(4, 2), {**EACH_4, "bind": "cores"})
    assert plan.cores == ((0,), (1,), (1,), (1,)) and plan.warnings == ()


def test_a_rule_names_cores_and_threads():
    rules = [{"ranks": 1, "cores": "2-3", "threads": 1}]
    plan = make_plan(one_host(3, 4), {"lanes_per_worker": 32, "rules": rules})
    assert plan.cores == ((0, 1, 2, 3), (2, 3), (0, 1, 2, 3)) and plan.bound == (False, True, False)
    assert plan.threads == (4, 1, 2)
    with pytest.raises(UserError, match="rank 1 on a cannot have core 4: the host has 4"):
        make_plan(one_host(3, 4), {**EACH_4, "rules": [{"ranks": 1, "cores": 4}]})


def test_a_rule_that_steers_nobody_is_told():
    rules = [{"hosts": "c*", "lanes": 1}, {"ranks": "1-4", "lanes": 2}, {"ranks": 1, "lanes": 3}]
    assert make_plan(two_hosts(), {**EACH_4, "rules": rules}).warnings == (
        "placement.rules[0] matches no worker: workers are ranks 1-4 on a, b",
        "placement.rules[2] matches no worker: rules before it match the same workers",
    )


def test_hosts_nobody_has_asked_can_be_planned():
    ranks = [RankInfo(rank, host, (), 0) for rank, host in enumerate("aabb")]
    assert make_plan(ranks, {**EACH_4, "bind": "cores"}).threads == (1, 1, 1, 1)


def test_a_learner_that_mpirun_bound_to_one_core_takes_all_it_can_reach():
    ranks = [RankInfo(0, "a", (0,), 8, reachable=tuple(range(8))), RankInfo(1, "b", (0,), 8, reachable=tuple(range(8)))]
    plan = make_plan(ranks, EACH_4)
    assert plan.cores == (tuple(range(8)), (0,)) and plan.bound == (True, False) and plan.threads == (8, 1)
    kept = make_plan(ranks, {**EACH_4, "bind": "launcher"})
    assert kept.cores[0] == (0,) and "bound to 1 of 8 cores" in kept.warnings[0]


def test_a_learner_that_may_have_one_core_only_is_left_there():
    plan = make_plan([RankInfo(0, "a", (3,), 8, reachable=(3,)), RankInfo(1, "b", (0,), 8)], EACH_4)
    assert plan.bound == (False, False) and "bound to 1 of 8 cores" in plan.warnings[0]


def test_a_learner_without_the_gpu_that_another_host_has_is_told():
    ranks = [RankInfo(0, "cpu1", (0, 1), 2), RankInfo(1, "cpu1", (0, 1), 2), RankInfo(2, "gpu0", (0, 1), 2, has_gpu=True)]
    assert "the learner runs on cpu1 without a GPU, while gpu0 has one" in make_plan(ranks, EACH_4).warnings[0]


def test_a_wrong_binding_is_told_the_choices():
    with pytest.raises(UserError, match="placement.bind='yes': choose auto, cores"):
        make_plan(one_host(3, 2), {**EACH_4, "bind": "yes"})


def test_looking_for_cores_leaves_the_binding_as_it_was():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert set(RankInfo.here(0).reachable) >= before or "SLURM_JOB_ID" in os.environ
        assert os.sched_getaffinity(0) == {min(before)}
    finally:
        os.sched_setaffinity(0, before)


def test_a_learners_host_that_came_too_late_is_a_mistake():
    with pytest.raises(UserError, match="placement.learner=b, but rank 0 is on a: it takes effect on the command line only"):
        make_plan(two_hosts(), {**EACH_4, "learner": "b"})
    assert make_plan(two_hosts(), {**EACH_4, "learner": "a"}).lanes == (0, 4, 4, 4, 4)
