"""The contract of a transport: a group of ranks that broadcast, gather and exchange.

Every method is collective: all ranks of the group call it, in the same order. Every wait has a deadline.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]


class Stopwatch:
    """Null stopwatch; the group calls `lap` as the phases of an iteration end."""

    def lap(self, name: str) -> None:
        """The time since the last lap belongs to `name`."""

    def counted_as(self, name: str) -> AbstractContextManager[None]:
        """Whatever laps inside belongs to `name`."""
        return nullcontext()


class Group(ABC):
    """Ranks 0 .. size - 1 that communicate; rank 0 is the root of every broadcast and gather.

    `deadline` (seconds) bounds every wait: when ranks that have not arrived gave no sign of life for that long (see
    `heartbeat`), rank 0 raises RankSilent naming them; other ranks wait somewhat longer, so that rank 0 speaks first.
    `library` names what carries the messages. `stopwatch` hears "broadcast" when a broadcast of an array has ended, "collect"
    when the last rank has arrived at a gather, and "gather" when the gathered data is complete. `patient` makes waiting ranks
    sleep with a back-off instead of spinning. While it `is_starting`, rank 0 tells on stderr whom it has been waiting for.
    """

    rank: int
    size: int
    host: str
    library: str = ""
    deadline: float = 300.0
    patient: bool = True
    is_starting: bool = False

    def __init__(self) -> None:
        self.stopwatch = Stopwatch()

    @abstractmethod
    def broadcast(self, array: np.ndarray) -> None:
        """Fill the C-contiguous `array` (same shape and dtype on all ranks) from rank 0's."""

    @abstractmethod
    def gather(self, part: Arrays | None, whole: Arrays | None, lanes: Sequence[int]) -> None:
        """Concatenate every rank's `part` along the leading lane axis, in rank order, into rank 0's `whole`.

        lanes: number of lanes of every rank, the same on all ranks; zeros are fine. A rank with zero lanes may pass
        None for `part`; ranks other than 0 pass None for `whole`. Fields are the same on all ranks, by name: their
        order is that of sorted names. Arrays are C-contiguous: part [lanes[rank], ...], whole [sum(lanes), ...].
        """

    @abstractmethod
    def exchange(self, value: Any) -> list[Any]:
        """Every rank's picklable `value`, in rank order, on all ranks. For start-up and ends, not for the loop."""

    @abstractmethod
    def split(self, color: int) -> Group:
        """The group of the ranks that gave the same `color`, in the order of their ranks here."""

    def starting(self, deadline: float) -> None:
        """Not collective, but for all ranks: they build their parts now and give no signs of life, so a wait may last
        `deadline` seconds.
        """
        self.deadline, self.is_starting = deadline, True

    def started(self, deadline: float) -> None:
        """Not collective, but for all ranks: the start is over, from here on `deadline` bounds silence."""
        self.deadline, self.is_starting = deadline, False

    def heartbeat(self) -> None:
        """Not collective, cheap, from the main thread: this rank is at work.

        A deadline counts from the last sign of life.
        """

    def close(self) -> None:
        """Collective, at an orderly end: give back what the group holds. Safe to call twice."""

    @abstractmethod
    def fail(self, report: str) -> None:
        """Not collective. Tell rank 0 that this rank has failed with `report`, so that it can save, print and end the job.

        Rank 0's next or present wait raises RankFailed. Returns after rank 0 has ended the job or a few seconds.
        """

    @abstractmethod
    def abort(self, code: int) -> None:
        """Not collective. End all ranks now with this exit code."""
