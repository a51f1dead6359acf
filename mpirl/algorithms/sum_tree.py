"""A sum tree: draws rows in proportion to their priorities, many at a time."""

from __future__ import annotations

import numpy as np


class SumTree:
    """Priorities (at least 0, float64) of rows 0 .. capacity - 1, and the sums of ever larger groups of neighbours.

    Node i has the children 2 i and 2 i + 1; the root is node 1, the leaves are the last half (Schaul et al. 2016, B.2.1).
    Setting or drawing M rows takes log2(capacity) steps of arrays of length M.
    """

    def __init__(self, capacity: int):
        self._depth = max(capacity - 1, 0).bit_length()
        self._first = 1 << self._depth  # the first leaf
        self._sums = np.zeros(2 * self._first)

    @property
    def total(self) -> float:
        return float(self._sums[1])

    def priorities(self, rows: np.ndarray) -> np.ndarray:
        """Of rows int64 [M], float64 [M]."""
        return self._sums[self._first + rows]

    def set(self, rows: np.ndarray, priorities: np.ndarray | float) -> None:
        """Set the priorities of rows int64 [M]; of a row that is named twice, the last counts."""
        nodes = self._first + rows
        self._sums[nodes] = priorities
        for _ in range(self._depth):
            nodes = nodes >> 1
            self._sums[nodes] = self._sums[2 * nodes] + self._sums[2 * nodes + 1]

    def draw(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Rows int64 [count], one from each of `count` equal parts of the total, which must not be 0."""
        assert self.total > 0, "nothing to draw from"
        left_of = (np.arange(count) + random.random(count)) * (self.total / count)  # how much lies to the left
        nodes = np.ones(count, np.int64)
        for _ in range(self._depth):
            nodes *= 2
            left = self._sums[nodes]
            # Rounding may carry a draw past the end of all priorities, which must not lead it to a row of priority 0.
            right = (left_of >= left) & (self._sums[nodes + 1] > 0)
            left_of -= np.where(right, left, 0)
            nodes += right
        return nodes - self._first
