"""In which order an epoch passes through a bounded buffer: pure, so that an interrupted one can be taken up in the middle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Load(NamedTuple):
    """Put the unit's windows into these slots of the buffer."""

    unit: int
    slots: list[int]


class Take(NamedTuple):
    """Make a batch of the windows in these slots, which are free then."""

    slots: list[int]


def shuffled(counts: Sequence[int], num_slots: int, batch: int, random: np.random.Generator) -> Iterator[Load | Take]:
    """An epoch: every unit is loaded once, in random order; batches of random windows are taken when there is no room.

    counts: windows of each unit. All batches but the last have `batch` windows.
    """
    assert num_slots >= batch + max(counts, default=0), "a buffer too small for a batch and a unit"
    free, filled = list(range(num_slots))[::-1], []
    for unit in random.permutation(len(counts)):
        while len(free) < counts[unit]:
            yield _take(free, filled, batch, random)
        slots = [free.pop() for _ in range(counts[unit])]
        filled += slots
        yield Load(int(unit), slots)
    while filled:
        yield _take(free, filled, batch, random)


def _take(free: list[int], filled: list[int], batch: int, random: np.random.Generator) -> Take:
    slots = []
    for _ in range(min(batch, len(filled))):
        place = int(random.integers(len(filled)))
        filled[place], filled[-1] = filled[-1], filled[place]
        slots.append(filled.pop())
    free += slots
    return Take(slots)
