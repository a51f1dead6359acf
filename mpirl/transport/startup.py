"""A start that can be watched: rank 0 says whom it waits for, and the job ends when that takes too long.

Needs the standard library only, so that it can tell what else is missing.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mpirl.errors import AgreedError, RankSilent, UserError
from mpirl.rules import is_host
from mpirl.transport import waiting
from mpirl.transport.launcher import launched_rank, launched_size

if TYPE_CHECKING:
    from mpirl.transport.base import Group

FIRST, LONGEST = 5.0, 30.0  # seconds of a wait before its first line, and between two lines at most
MEND = "if the start is only slow, allow more with startup_deadline=SECONDS"


class HostError(UserError):
    """Something is missing on this rank's host. The other ranks may be fine, so this one has to say so."""

    def __init__(self, problem: str, mend: str):
        super().__init__(f"{problem} on host {socket.gethostname()}: {mend}")


class Rhythm:
    """When a wait is told of: after `first` seconds, then whenever the time has doubled or grown by LONGEST."""

    def __init__(self, first: float):
        self.due = first  # seconds since the wait began
        self._start = time.monotonic()

    @property
    def waited(self) -> float:
        return time.monotonic() - self._start

    def is_due(self) -> bool:
        """Whether to tell now; if so, the next time is set."""
        waited = self.waited
        if waited < self.due:
            return False
        self.due = min(2 * waited, waited + LONGEST)
        return True


def rhythm_of(group: Group) -> Rhythm:
    """The rhythm of a wait that begins now: rank 0 tells of it while the group is starting, nobody else ever does."""
    return Rhythm(first_line(group.deadline) if group.is_starting and group.rank == 0 else math.inf)


def first_line(deadline: float) -> float:
    """Seconds before the first line; sooner where the wait must not last long."""
    return min(FIRST, deadline / 4)


def progress(size: int, missing: Sequence[tuple[int, str | None]], waited: float) -> str:
    """How far a group of `size` ranks is; `missing` are (rank, host if known) that rank 0 waits for."""
    whom = places(missing) if missing else "the network between the hosts"
    return f"{size - 1 - len(missing)}/{size - 1} workers ready, waiting for {whom} for {_seconds(waited)}"


def silence(group: Group, what: str, silent: Sequence[tuple[int, str | None]], waited: float) -> RankSilent:
    """The error of a rank that waited in `what` for the (rank, host) given, in vain."""
    if not group.is_starting:
        return waiting.silence(what, silent, waited)
    return RankSilent(
        f"start-up: no sign of {places(silent)} after {_seconds(waited)}. "
        f"Look there for a stopped or stuck process, and at the network between the hosts; {MEND}"
    )


def places(members: Sequence[tuple[int, str | None]]) -> str:
    """Ranks by host, "cpu3 (ranks 5, 6), cpu4 (rank 7)"; those whose host is not known by number only."""
    ranks_of: dict[str | None, list[int]] = {}
    for rank, host in members:
        ranks_of.setdefault(host, []).append(rank)
    return ", ".join(f"{host} ({_numbers(ranks)})" if host else _numbers(ranks) for host, ranks in ranks_of.items())


def first_rank_on(host: str, hosts: Sequence[str]) -> int:
    """The first rank on a host, of the `hosts` of all. Raises AgreedError if none is there: all ranks look alike."""
    for rank, name in enumerate(hosts):
        if is_host(host, name):
            return rank
    raise AgreedError(f"placement.learner={host}: no rank runs there; the hosts are {', '.join(dict.fromkeys(hosts))}")


def _seconds(waited: float) -> str:
    return f"{waited:.0f} s" if waited >= 10 else f"{waited:.2g} s"


def _numbers(ranks: list[int]) -> str:
    """"rank 7", "ranks 5, 6" or "ranks 1-4, 9"."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    words = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(words)}"


@contextmanager
def watched_init(environ: Mapping[str, str], deadline: float) -> Iterator[None]:
    """Around MPI_Init, where a rank can only wait: a thread tells of it on rank 0, and ends the process after `deadline`.

    The caller must release the GIL. `environ` is what the launcher says. Other ranks wait a little longer, so that rank 0
    speaks first, and its launcher ends them.
    """
    done, rank = threading.Event(), launched_rank(environ) or 0
    nodes = "" if "OMPI_COMM_WORLD_SIZE" in environ else environ.get("SLURM_STEP_NODELIST", "")  # of mpirun's own step else
    reason = f"not all of the {launched_size(environ) or 1} ranks have started yet{nodes and f' (hosts: {nodes})'}"
    threading.Thread(target=_watch_init, args=(done, rank, reason, deadline), name="MPI_Init", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _watch_init(done: threading.Event, rank: int, reason: str, deadline: float) -> None:
    rhythm = Rhythm(first_line(deadline) if rank == 0 else math.inf)
    limit = deadline if rank == 0 else deadline + 5 + 0.2 * rank
    while not done.wait(max(0.0, min(rhythm.due, limit) - rhythm.waited)):
        if rhythm.waited >= limit:
            say(
                f"start-up: MPI_Init has not returned on rank {rank} after {_seconds(rhythm.waited)}: {reason}. "
                f"Every host must be reachable and have the same python and mpirl: "
                f"`python -m mpirl.placement --check` looks; {MEND}"
            )
            time.sleep(0.2)  # launchers drop output that they have not passed on when the job is killed
            os._exit(1)
        if rhythm.is_due():
            say(f"waiting in MPI_Init for {_seconds(rhythm.waited)}: {reason}")


def say(text: str) -> None:
    print(f"mpirl: {text}", file=sys.stderr, flush=True)
