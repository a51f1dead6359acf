"""Times of an iteration: every second belongs to one phase, on a clock that the tests turn."""

import pytest

from mpirl import timing
from mpirl.timing import IterationTimes


@pytest.fixture
def clock(monkeypatch):
    """Call it to let seconds pass."""
    now = [100.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def pass_seconds(seconds):
        now[0] += seconds

    return pass_seconds


def spend(times, clock, **phases):
    for name, seconds in phases.items():
        clock(seconds)
        times.lap(name)


def test_the_time_since_the_last_lap_belongs_to_the_phase_that_ends(clock):
    times = IterationTimes()
    spend(times, clock, broadcast=1, collect=8, gather=2, archive=0.5, learn=4)
    clock(0.25)
    seconds = times.close()
    assert seconds == {"broadcast": 1, "collect": 8, "gather": 2, "archive": 0.5, "learn": 4, "other": 0.25, "iteration": 15.75}


def test_phases_sum_to_the_iteration_also_over_several(clock):
    times = IterationTimes()
    for iteration in range(3):
        spend(times, clock, collect=1 + iteration, other=0.5, learn=2, save=0.125)
        seconds = times.close()
        assert seconds["iteration"] == 3.625 + iteration
        assert sum(seconds.values()) == 2 * seconds["iteration"]


def test_phases_that_did_not_happen_took_no_time(clock):
    seconds = IterationTimes().close()
    assert {name: seconds[name] for name in ("broadcast", "collect", "gather", "learn", "archive")} == dict.fromkeys(
        ("broadcast", "collect", "gather", "learn", "archive"), 0.0
    )


def test_laps_inside_an_evaluation_are_counted_as_evaluation(clock):
    times = IterationTimes()
    clock(1)
    with times.counted_as("evaluate"):
        spend(times, clock, collect=4, gather=2)
        clock(1)
    spend(times, clock, collect=8)
    seconds = times.close()
    assert (seconds["evaluate"], seconds["collect"], seconds["gather"], seconds["other"]) == (7, 8, 0, 1)


def test_a_failed_evaluation_leaves_the_later_laps_alone(clock):
    times = IterationTimes()
    with pytest.raises(RuntimeError):
        with times.counted_as("evaluate"):
            raise RuntimeError
    spend(times, clock, learn=3)
    assert times.close()["learn"] == 3
