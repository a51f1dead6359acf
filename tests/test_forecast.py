"""The model of an iteration: it returns what was measured, and grows where it says."""

import math

import pytest

from mpirl.forecast import BUSY, Measurement, fixed_share, predict, tree_levels, useful_workers

SECONDS = {"broadcast": 0.01, "collect": 3.0, "gather": 0.02, "archive": 0.03, "learn": 0.9, "other": 0.03, "save": 0.01}
MEASURED = Measurement(SECONDS, lanes=(4, 4), steps=1000, weights_bytes=4_000_000, batch_bytes=8_000_000, iterations=20)


def test_the_measured_layout_is_predicted_as_measured():
    found = predict(MEASURED, workers=2, lanes_total=8, gbits=math.inf)
    assert found.iteration == pytest.approx(sum(SECONDS.values()))
    assert found.speed == pytest.approx(1000 / sum(SECONDS.values()))
    assert found.busy == pytest.approx(1 - 3.0 / 4.0)


def test_an_unequal_layout_is_predicted_as_measured_too():
    unequal = Measurement(SECONDS, lanes=(2, 6), steps=1000, weights_bytes=1, batch_bytes=1, iterations=20, fixed_share=0.3)
    assert predict(unequal, 2, 8, math.inf, most=6).iteration == pytest.approx(sum(SECONDS.values()))
    assert predict(unequal, 2, 8, math.inf).seconds["collect"] == pytest.approx(3.0 * (0.3 + 0.7 * 4 / 6))


def test_the_sum_of_the_iteration_is_not_a_phase():
    with_sum = Measurement({**SECONDS, "iteration": 4.0}, (4, 4), 1000, 1, 1, 20)
    assert predict(with_sum, 2, 8, math.inf).iteration == pytest.approx(4.0)


def test_twice_the_workers_with_the_same_lanes_each_collect_as_long_and_learn_twice_as_long():
    found = predict(MEASURED, workers=4, lanes_total=16, gbits=math.inf)
    assert found.seconds["collect"] == 3.0 and found.steps == 2000
    assert [found.seconds[phase] for phase in ("gather", "archive", "learn")] == [0.04, 0.06, 1.8]


def test_twice_the_workers_with_the_same_batch_collect_half_as_long_and_learn_as_long():
    found = predict(MEASURED, workers=4, lanes_total=8, gbits=math.inf)
    assert found.seconds["collect"] == 1.5 and found.seconds["learn"] == 0.9 and found.steps == 1000


def test_the_worker_with_the_most_lanes_decides():
    assert predict(MEASURED, 3, 8, math.inf).seconds["collect"] == pytest.approx(3.0 * 3 / 4)


def test_collecting_never_falls_below_its_fixed_part():
    half_fixed = Measurement(SECONDS, (4, 4), 1000, 1, 1, 20, fixed_share=0.5)
    assert predict(half_fixed, 8, 8, math.inf).seconds["collect"] == pytest.approx(1.5 + 1.5 / 4)


def test_a_slow_link_takes_the_time_that_its_bytes_take():
    found = predict(MEASURED, workers=2, lanes_total=8, gbits=0.1)
    assert found.seconds["gather"] == pytest.approx(8_000_000 * 8 / 0.1e9)
    assert found.seconds["broadcast"] == pytest.approx(2 * 4_000_000 * 8 / 0.1e9)
    assert predict(MEASURED, 2, 8, gbits=1000).seconds["gather"] == 0.02


@pytest.mark.parametrize(("ranks", "levels"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (9, 4)])
def test_a_broadcast_goes_down_a_binomial_tree(ranks, levels):
    assert tree_levels(ranks) == levels


def test_useful_workers_are_the_fewest_that_keep_rank_0_busy():
    at = lambda workers: predict(MEASURED, workers, 4 * workers, math.inf)
    found = useful_workers(at)
    assert found.busy >= BUSY > at(found.workers - 1).busy and found.heaviest == "learn"
    assert found.speed >= BUSY * at(10_000).speed  # no number of workers is much faster


def test_there_may_be_no_number_of_workers_that_keeps_rank_0_busy():
    slow = Measurement({**SECONDS, "collect": 300.0}, (4, 4), 1000, 1, 1, 20, fixed_share=0.9)
    assert useful_workers(lambda workers: predict(slow, workers, 8, math.inf), most=8) is None


def test_memory_grows_with_the_batch_and_the_weights():
    small, large = (predict(MEASURED, workers, 4 * workers, 10).memory_bytes for workers in (2, 200))
    assert large - small == pytest.approx(2 * 8_000_000 * 99)
    heavier = Measurement(SECONDS, (4, 4), 1000, MEASURED.weights_bytes + 10**9, 8_000_000, 20)
    assert predict(heavier, 2, 8, 10).memory_bytes - small == pytest.approx(5e9)


def test_the_fixed_part_is_where_a_line_through_the_workers_meets_zero_lanes():
    assert fixed_share([(2, 1.4), (4, 1.8), (8, 2.6)]) == pytest.approx(1.0 / 2.6)
    assert fixed_share([(2, 2.0), (4, 4.0)]) == pytest.approx(0.0)
    assert fixed_share([(2, 1.0), (2, 1.0), (4, 1.0)]) == pytest.approx(1.0)


@pytest.mark.parametrize("points", [[], [(4, 1.0)], [(4, 1.0), (4, 1.2)]])
def test_equal_lanes_do_not_tell_a_fixed_part(points):
    assert fixed_share(points) is None


@pytest.mark.parametrize("points", [[(2, 3.0), (4, 1.0)], [(2, 0.0), (4, 0.0)], [(2, 0.1), (4, 9.0)]])
def test_noise_gives_no_impossible_share(points):
    assert 0 <= fixed_share(points) <= 1
