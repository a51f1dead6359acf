"""How ranks wait for each other: the back-off, the limits, and the words when a wait was in vain."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpirl.errors import Interrupted, RankSilent

if TYPE_CHECKING:
    from mpirl.transport.base import Group

SHORTEST = 20e-6  # seconds of a patient rank's sleep
LONGEST = 5e-3  # a look takes 40 us of a core
SHARE = 0.03  # of the time waited so far, slept at once: a wait is at most 3 % longer than needed, and looks are few
EAGER_SLEEP = 50e-6  # seconds an eager rank sleeps once it has spun
EAGER_SPINS = 200


class Backoff:
    """Pauses between two looks at something awaited: longer and longer if patient, else hardly any."""

    def __init__(self, patient: bool):
        self._patient = patient
        self._start = time.monotonic()
        self._spins = 0 if patient else EAGER_SPINS

    def pause(self) -> None:
        if self._spins > 0:
            self._spins -= 1
        elif self._patient:
            time.sleep(min(LONGEST, max(SHORTEST, SHARE * (time.monotonic() - self._start))))
        else:
            time.sleep(EAGER_SLEEP)


class Looks:
    """The beginning of a wait, moved by the time in which this process did not look.

    Between two looks of a process that is stopped (a suspended job, SIGSTOP) any time may pass. The others were stopped as
    well, mostly, and their silence then does not count.
    """

    def __init__(self, deadline: float):
        self.longest = min(1.0, max(0.1, deadline / 10))  # between two looks
        self._start = self._last = time.monotonic()

    def start(self) -> float:
        """The beginning, by time.monotonic; to be asked at every look."""
        now = time.monotonic()
        if now - self._last > self.longest:
            self._start += now - self._last
        self._last = now
        return self._start


def check_interrupt(group: Group, what: str) -> None:
    """Raise Interrupted if another thread of this rank has ended its waits."""
    if group.is_interrupted:
        raise Interrupted(f"{what}: given up, since this rank failed meanwhile")


def limit(rank: int, deadline: float) -> float:
    """Seconds that this rank waits. Rank 0 speaks first, because it knows who is missing; the others are staggered."""
    return deadline if rank == 0 else 2 * deadline + 5 + 0.2 * rank


def silence(what: str, silent: Sequence[tuple[int, str | None]], waited: float) -> RankSilent:
    """The error of a rank that waited in `what` for the (rank, host) given, which gave no sign of life for `waited` seconds."""
    return RankSilent(
        f"{what}: no sign of {', '.join(name(*member) for member in silent)} for {waited:.1f} s. "
        f"Look there for a stopped or stuck process; if it is only slow, allow a longer deadline"
    )


def stalled(what: str, size: int, waited: float) -> RankSilent:
    """The error of rank 0 when all ranks have arrived and the data has not."""
    return RankSilent(
        f"{what}: all {size} ranks arrived, but the transfer stalled: it is incomplete after {waited:.1f} s. "
        f"Check the network between the hosts, or allow a longer deadline"
    )


def name(rank: int, host: str | None) -> str:
    """How messages call a rank."""
    return f"rank {rank} on host {host}" if host else f"rank {rank}"
