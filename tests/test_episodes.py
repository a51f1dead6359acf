"""Episodes: the tracker agrees with a naive reader of whole lanes, however the lanes are cut into batches."""

import numpy as np
import pytest

from mpirl.episodes import WINDOW, EpisodeTracker, first_episodes
from mpirl.specs import StepType
from mpirl.trajectory import NO_SEED

FIRST, MID, LAST = StepType.FIRST, StepType.MID, StepType.LAST


class Lane:
    """A lane's moments 0 .. length, with episodes of random lengths and random rewards that floats add up exactly."""

    def __init__(self, random, lane, num_lanes, length, first=0):
        self.step_type, self.episode, self.seed = [FIRST], [lane + first * num_lanes], [int(random.integers(1000))]
        self.reward, self.discount = [], []
        while len(self.reward) < length:
            ended = self.step_type[-1] == LAST
            kind = FIRST if ended else random.choice([MID, LAST], p=[0.6, 0.4])
            self.step_type.append(kind)
            self.episode.append(self.episode[-1] + num_lanes * ended)
            self.seed.append(int(random.integers(1000)) if ended and random.random() < 0.5 else NO_SEED)
            self.reward.append(0.0 if ended else float(random.integers(-8, 8)))
            self.discount.append(float(random.integers(2)) if kind == LAST else 1.0)

    def episodes(self):
        """(id, seed, return, length, reason, first moment, last moment) of the episodes that ended, read naively."""
        start = None
        for moment, kind in enumerate(self.step_type):
            if kind == FIRST:
                start = moment
            elif kind == LAST:
                reason = "terminated" if self.discount[moment - 1] == 0 else "truncated"
                total = sum(self.reward[start:moment])
                yield self.episode[moment], self.seed[start], total, moment - start, reason, start, moment


def batch_of(lanes, start, end, version=0):
    """The batch whose o_0 is moment `start` and whose o_T is moment `end`, played by weights of `version`."""
    cut = lambda name, end: np.array([getattr(lane, name)[start:end] for lane in lanes])
    fields = {name: cut(name, end + 1) for name in ("step_type", "episode", "seed")}
    fields |= {name: cut(name, end).astype(np.float32) for name in ("reward", "discount")}
    return fields | {"version": np.full(len(lanes), version)}


def cuts(random, length):
    """Random cuts of a lane into batches, many of them of one step."""
    places = [0]
    while places[-1] < length:
        places.append(min(length, places[-1] + int(random.choice([1, 1, 2, 3, 8]))))
    return list(zip(places, places[1:]))


@pytest.mark.parametrize("seed", range(40))
def test_agrees_with_a_naive_reader_wherever_the_batches_are_cut(seed):
    random = np.random.default_rng(seed)
    num_lanes, length = int(random.integers(1, 4)), int(random.integers(1, 40))
    lanes = [Lane(random, lane, num_lanes, length) for lane in range(num_lanes)]
    tracker, rows, moments = EpisodeTracker(range(10, 10 + num_lanes)), [], {}
    for iteration, (start, end) in enumerate(cuts(random, length), 1):
        moments |= {(iteration, t): start + t for t in range(end - start + 1)}
        new = tracker.update(iteration, batch_of(lanes, start, end))
        assert all(row["end_iteration"] == iteration for row in new)
        rows += new
    for number, lane in enumerate(lanes):
        found = [row for row in rows if row["lane"] == number]
        assert [
            (row["id"], row["seed"], row["return"], row["length"], row["reason"])
            + (moments[row["start_iteration"], row["start_step"]], moments[row["end_iteration"], row["end_step"]])
            for row in found
        ] == list(lane.episodes())
        assert all(row["rank"] == 10 + number for row in found)
        assert tracker.last_id[number] == lane.episode[-1]
    assert tracker.finished == len(rows)


def test_an_episode_that_starts_at_the_last_moment_is_begun_once():
    lane = Lane(np.random.default_rng(0), 0, 1, 0)
    lane.step_type, lane.episode = [FIRST, LAST, FIRST, MID, LAST], [0, 0, 1, 1, 1]
    lane.seed = [5, NO_SEED, 6, NO_SEED, NO_SEED]
    lane.reward, lane.discount = [1.0, 0.0, 2.0, 4.0], [0.0, 1.0, 1.0, 1.0]
    tracker = EpisodeTracker([1])
    (row,) = tracker.update(1, batch_of([lane], 0, 2))
    assert (row["id"], row["return"], row["reason"]) == (0, 1.0, "terminated")
    assert tracker.last_id.tolist() == [1]
    (row,) = tracker.update(2, batch_of([lane], 2, 4))
    assert (row["id"], row["seed"], row["return"], row["length"], row["reason"]) == (1, 6, 6.0, 2, "truncated")
    assert (row["start_iteration"], row["start_step"], row["end_step"]) == (1, 2, 2)


def test_versions_are_those_of_the_first_and_the_last_step():
    lane = Lane(np.random.default_rng(0), 0, 1, 0)
    lane.step_type, lane.episode = [FIRST, LAST, FIRST, MID, MID, LAST, FIRST, LAST], [0, 0, 1, 1, 1, 1, 2, 2]
    lane.seed, lane.reward, lane.discount = [NO_SEED] * 8, [1.0] * 7, [1.0] * 7
    tracker, versions = EpisodeTracker([1]), []
    for version, (start, end) in enumerate([(0, 2), (2, 3), (3, 6), (6, 7)], start=7):  # episode 1 begins with o_T of the first
        rows = tracker.update(1, batch_of([lane], start, end, version))
        versions += [(row["first_version"], row["last_version"]) for row in rows]
    assert versions == [(7, 7), (8, 9), (10, 10)]


def test_means_are_over_the_last_100_episodes_and_none_before_the_first():
    tracker, lane = EpisodeTracker([1]), Lane(np.random.default_rng(3), 0, 1, 600)
    assert tracker.mean_return is None and tracker.mean_length is None
    tracker.update(1, batch_of([lane], 0, 600))
    last = list(lane.episodes())[-WINDOW:]
    assert len(last) == WINDOW < tracker.finished
    assert tracker.mean_return == pytest.approx(np.mean([row[2] for row in last]))
    assert tracker.mean_length == pytest.approx(np.mean([row[3] for row in last]))


def test_a_restart_keeps_the_window_and_drops_the_episodes_under_way():
    random = np.random.default_rng(4)
    before, after = EpisodeTracker([1, 2]), EpisodeTracker([1, 2])
    before.update(1, batch_of([Lane(random, lane, 2, 21) for lane in range(2)], 0, 21))
    after.load_state_dict(before.state_dict())
    assert (after.finished, after.mean_return, after.mean_length) == (before.finished, before.mean_return, before.mean_length)
    lanes = [Lane(random, lane, 2, 9, first=50) for lane in range(2)]
    rows = after.update(2, batch_of(lanes, 0, 9))
    assert [row["return"] for row in rows if row["lane"] == 0] == [episode[2] for episode in lanes[0].episodes()]


@pytest.mark.parametrize("num_lanes", [2, 3, 5])
def test_episode_ids_are_never_used_twice_even_if_a_resumed_run_stops_at_once(num_lanes):
    before = EpisodeTracker([1, 2, 2])
    before.last_id[:] = 30, -1, 17
    firsts = first_episodes(before.state_dict()["last_id"], num_lanes)
    resumed = EpisodeTracker(range(num_lanes))
    resumed.load_state_dict(before.state_dict())
    np.testing.assert_array_equal(first_episodes(resumed.state_dict()["last_id"], num_lanes), firsts)


def test_lanes_go_on_above_the_ids_they_reached():
    np.testing.assert_array_equal(first_episodes([], 4), [0] * 4)
    np.testing.assert_array_equal(first_episodes([-1, -1], 2), [0, 0])
    np.testing.assert_array_equal(first_episodes([6, 1, -1], 3), [3, 1, 0])


@pytest.mark.parametrize("num_lanes", [1, 2, 4, 7])
def test_with_another_number_of_lanes_all_ids_are_new(num_lanes):
    last_id = [12, 4, 8]
    ids = np.arange(num_lanes) + first_episodes(last_id, num_lanes) * num_lanes
    assert ids.min() > max(last_id) and len(set(ids)) == num_lanes
