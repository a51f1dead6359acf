"""The contract of a transport: a group of ranks that broadcast, gather and exchange.

Every method is collective: all ranks of the group call it, in the same order. Every wait has a deadline.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from mpirl.errors import UserError
from mpirl.milestones import Milestones
from mpirl.trajectory import Field

Arrays = Mapping[str, np.ndarray]


class Stopwatch:
    """Null stopwatch; the group calls `lap` as the phases of an iteration end."""

    def lap(self, name: str) -> None:
        """The time since the last lap belongs to `name`."""

    def counted_as(self, name: str) -> AbstractContextManager[None]:
        """Whatever laps inside belongs to `name`."""
        return nullcontext()


class Steps(ABC):
    """Step-wise messages in a few slots that go on independently: all workers' questions to rank 0, and its answers to them.

    In a slot the turns alternate: every worker with lanes in it sends its question, rank 0 receives them all and sends the
    answers, every worker receives its own. An array that was sent is its owner's again when the next turn has come.
    """

    @abstractmethod
    def send(self, slot: int, reply: bool = True) -> None:
        """Send this rank's array, without waiting: rank 0 the answers, others their question. reply: whether one will come."""

    @abstractmethod
    def receive(self, slot: int) -> None:
        """Wait until this rank's other array is filled: on rank 0 with all questions, on others with their answer."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the messages hold. Not collective."""


class Group(ABC):
    """Ranks 0 .. size - 1 that communicate; rank 0 is the root of every broadcast and gather.

    `deadline` (seconds) bounds every wait: when ranks that have not arrived gave no sign of life for that long (see
    `heartbeat`), rank 0 raises RankSilent naming them; other ranks wait somewhat longer, so that rank 0 speaks first.
    `library` names what carries the messages. `stopwatch` hears "broadcast" when a broadcast of an array has ended, "collect"
    when the last rank has arrived at a gather, and "gather" when the gathered data is complete. `patient` makes waiting ranks
    sleep with a back-off instead of spinning. `milestones`: when this rank's process reached what. While it `is_starting`,
    rank 0 tells on stderr whom it has been waiting for.
    Once it `is_interrupted`, its waits raise Interrupted.
    """

    rank: int
    size: int
    host: str
    library: str = ""
    deadline: float = 300.0
    patient: bool = True
    is_starting: bool = False
    is_interrupted: bool = False

    def __init__(self) -> None:
        self.stopwatch = Stopwatch()
        self.milestones = Milestones()

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

    @contextmanager
    def gathering(
        self, part: Arrays | None, whole: Arrays | None, lanes: Sequence[int], beside: bool = False
    ) -> Iterator[None]:
        """As `gather`, complete when the context is left. With `beside` it goes on while rank 0 is inside, which must leave the
        group alone there; an exception in there ends it. "collect" is then what rank 0 waited for it in the end.
        By default it comes after what is inside.
        """
        yield
        self.gather(part, whole, lanes)

    def room(self, table: Mapping[str, Field], lanes: Sequence[int], mode: str) -> Arrays | None:
        """* Zeroed memory for this rank's part of the gathers of these fields; None if any will do. For the start-up.

        lanes: of every rank. mode: "direct", or "host", with which the workers of a host may share memory of which one of them
        sends all. Only the memory of the latest call counts; a part that lies elsewhere is gathered just as well.
        """
        return None

    @abstractmethod
    def exchange(self, value: Any) -> list[Any]:
        """Every rank's picklable `value`, in rank order, on all ranks. For start-up and ends, not for the loop."""

    def steps(self, questions: Sequence[np.ndarray], answers: Sequence[np.ndarray], lanes: Sequence[Sequence[int]]) -> Steps:
        """* Step-wise messages with these arrays, one of each per slot, C-contiguous: [lanes of the rank in the slot, ...], and
        on rank 0 [lanes of all, ...]. lanes: by slot and rank, the same on all ranks, none on rank 0.
        """
        raise UserError(f"{type(self).__name__} has no step-wise messages, which policy=central needs: choose policy=local")

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

    def interrupt(self) -> None:
        """Not collective. End the wait that another thread of this rank is in; afterwards the group is for `abort` only."""
        self.is_interrupted = True

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
