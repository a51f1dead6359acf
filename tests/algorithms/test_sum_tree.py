"""SumTree: it holds what was set, and draws in proportion."""

import numpy as np
import pytest

from mpirl.algorithms.sum_tree import SumTree


@pytest.mark.parametrize("capacity", [1, 2, 3, 8, 100])
def test_the_tree_agrees_with_a_plain_array(capacity):
    random, tree, plain = np.random.default_rng(0), SumTree(capacity), np.zeros(capacity)
    for _ in range(20):
        rows = random.integers(capacity, size=5)
        priorities = random.random(5) * (random.random(5) < 0.7)
        tree.set(rows, priorities)
        for row, priority in zip(rows, priorities):  # one by one: the last counts
            plain[row] = priority
        np.testing.assert_array_equal(tree.priorities(np.arange(capacity)), plain)
        assert tree.total == pytest.approx(plain.sum())


def slow_draw(priorities, count, random):
    """The row in whose part of the line each point falls."""
    ends, points = np.cumsum(priorities), (np.arange(count) + random.random(count)) / count
    return [next(row for row, end in enumerate(ends) if point * ends[-1] < end) for point in points]


def test_draws_are_those_of_a_walk_along_the_line_of_priorities():
    priorities = np.array([0.5, 0.0, 2.0, 1.0, 0.0, 0.25, 3.0])
    tree = SumTree(7)
    tree.set(np.arange(7), priorities)
    drawn = tree.draw(64, np.random.default_rng(3))
    assert drawn.tolist() == slow_draw(priorities, 64, np.random.default_rng(3))


def test_frequencies_follow_priorities():
    tree = SumTree(50)
    tree.set(np.arange(50), np.arange(50.0))
    drawn = np.concatenate([tree.draw(10, np.random.default_rng(seed)) for seed in range(4000)])
    expected = np.arange(50) / np.arange(50).sum()
    deviation = np.bincount(drawn, minlength=50) / len(drawn) - expected
    assert (np.abs(deviation) < 5 * np.sqrt(expected / len(drawn)) + 1e-12).all()


def test_rows_of_priority_zero_are_never_drawn():
    random, tree = np.random.default_rng(0), SumTree(1000)
    positive = np.flatnonzero(random.random(1000) < 0.1)
    tree.set(positive, random.random(len(positive)) * 10.0 ** random.integers(-12, 12, len(positive)))
    for _ in range(50):
        assert np.isin(tree.draw(256, random), positive).all()


def test_a_draw_beyond_the_end_of_all_priorities_stays_in_reach():
    class Late:
        def random(self, count):
            return np.ones(count)  # the end of every part: rounding can do that

    tree = SumTree(6)
    tree.set(np.array([0, 3]), np.array([0.1, 0.2]))
    assert set(tree.draw(8, Late()).tolist()) <= {0, 3}
