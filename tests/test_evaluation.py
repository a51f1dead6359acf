"""Evaluation: the same greedy episodes at every call, equally many in every lane, whoever plays them."""

from types import SimpleNamespace

import numpy as np
import pytest
from counting import make_worker

from mpirl.emulators.catch import Catch
from mpirl.emulators.lanes import EmulatorLanes
from mpirl.evaluation import evaluate, play
from mpirl.policies.base import Decision, Policy
from mpirl.assembly import LazyEmulator
from mpirl.schedule import Command
from mpirl.timing import IterationTimes
from mpirl.trajectory import Layout, Trajectory
from mpirl.transport.threads import run_threads
from mpirl.worker import Lanes, Worker


class Still(Policy):
    """Never moves: the return tells the episodes apart."""

    def act(self, observation, step_type, core, noise):
        assert noise is None
        return Decision(np.ones(len(core), np.int64), np.zeros(len(core), np.float32), core, {})


def evaluator(first=0, num_lanes=6, total=6, made=None):
    twin = EmulatorLanes(lambda: Catch(rows=5, columns=3), num_lanes)
    made = [] if made is None else made

    def make():
        made.append(EmulatorLanes(lambda: Catch(rows=5, columns=3), num_lanes))
        return made[-1]

    trajectory = Trajectory.allocate(Layout(twin.specs, steps=7), num_lanes)
    lanes = Lanes(first, total, np.zeros(num_lanes, np.int64), 1, 1, stream=2)
    return Worker(LazyEmulator(twin, make), Still(), trajectory, lanes, noise=None)


def test_plays_the_same_episodes_at_each_call():
    worker = evaluator()
    first = play(worker, Command(1, 0), per_lane=5)
    assert set(first["return"].flatten()) == {-1.0, 1.0} and (first["length"] == 4).all()
    for iteration in (2, 3):
        again = play(worker, Command(iteration, 9), per_lane=5)
        np.testing.assert_array_equal(first["return"], again["return"])


def test_every_lane_plays_equally_many_however_short_its_episodes_are():
    worker = make_worker(4, (1, 9, 1, 9, 9), num_lanes=3, greedy=True)
    found = play(worker, Command(1, 0), per_lane=5)
    np.testing.assert_array_equal(found["length"], [np.roll((1, 9, 1, 9, 9), -lane) for lane in range(3)])


def test_lanes_split_over_two_workers_play_the_same():
    whole = play(evaluator(), Command(1, 0), 3)["return"]
    parts = [play(evaluator(first, n), Command(1, 0), 3)["return"] for first, n in ((0, 2), (2, 4))]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_emulators_of_evaluation_are_made_when_first_needed():
    made = []
    worker = evaluator(made=made)
    worker.close()
    assert not made
    play(worker, Command(1, 0), 1), play(worker, Command(2, 0), 1)
    assert len(made) == 1


@pytest.mark.parametrize("lanes", [(0, 6), (0, 2, 4), (0, 6, 0)])
def test_statistics_of_all_workers_arrive_at_rank_0(lanes):
    whole = play(evaluator(), Command(1, 0), 2)["return"]

    def rank(group):
        times = group.stopwatch = IterationTimes()
        part = evaluator(sum(lanes[: group.rank]), lanes[group.rank]) if group.rank else None
        role = SimpleNamespace(lanes=lanes, episodes_per_lane=2, evaluator=part, learner=None if group.rank else object())
        result = evaluate(role, group, Command(1, 0))
        return result, times.close()

    results = run_threads(len(lanes), rank, deadline=20)
    statistics, seconds = results[0]
    assert statistics["mean_reward"] == whole.mean() and statistics["std_reward"] == whole.std()
    assert (statistics["episodes"], statistics["mean_ep_length"]) == (12, 4)
    assert seconds["evaluate"] > 0 and seconds["collect"] == seconds["gather"] == 0
    assert all(result is None for result, _ in results[1:])
