"""Programs for test_by_host.py in which something goes wrong: `by_host_trouble.py SCENARIO` under mpirun.

Rank r says that it is on host "h" + "abb"[r % 3]: rank 0 shares memory with rank 3, rank 1 leads ranks 2, 4 and 5.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import time
import traceback
from types import SimpleNamespace

import numpy as np
from by_host_claims import TABLE

from mpirl.errors import AgreedError, RankFailed, RankSilent
from mpirl.transport import shared_memory
from mpirl.transport.mpi import MpiGroup, world


def silent(group: MpiGroup) -> None:
    """A worker that neither leads nor is on rank 0's host sleeps instead of gathering."""
    group.deadline = 1.0
    gather(group, before=lambda: time.sleep(60) if group.rank == 2 else None)


def stopped(group: MpiGroup) -> None:
    """A leader is stopped after an iteration that went well."""
    group.deadline = 1.0
    gather(group, before=lambda: os.kill(os.getpid(), signal.SIGSTOP) if group.rank == 1 else None)


def killed(group: MpiGroup) -> None:
    """A leader is killed while the others wait for it."""
    gather(group, before=lambda: os.kill(os.getpid(), signal.SIGKILL) if group.rank == 1 else None)


def failed(group: MpiGroup) -> None:
    """A worker fails; rank 0 hears of it in its wait."""
    gather(group, before=lambda: group.fail("the dog ate it") if group.rank == 2 else None)


def too_large(group: MpiGroup) -> None:
    """The leader of one host may have no more memory."""
    if group.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    expect_agreed(group)


def out_of_reach(group: MpiGroup) -> None:
    """The process that a worker looks for is another one here."""
    if group.rank == 2:
        opened = lambda *_: os.open(__file__, os.O_RDWR)
        shared_memory.os = SimpleNamespace(open=opened, fstat=os.fstat, close=os.close, O_RDWR=os.O_RDWR)
    expect_agreed(group)


def expect_agreed(group: MpiGroup) -> None:
    try:
        group.room(TABLE, lanes_of(group), "host")
    except AgreedError as error:
        print(f"rank {group.rank} agreed: {error}", flush=True)


def lanes_of(group: MpiGroup) -> list[int]:
    return [0, *([2] * (group.size - 1))]


def gather(group: MpiGroup, before) -> None:
    """Two gathers; `before` comes before the second."""
    lanes = lanes_of(group)
    part = group.room(TABLE, lanes, "host")
    whole = {n: np.zeros((sum(lanes), *f.shape), f.dtype) for n, f in TABLE.items()} if group.rank == 0 else None
    try:
        group.gather(part, whole, lanes)
        before()
        group.gather(part, whole, lanes)
    except (RankSilent, RankFailed) as error:
        print(f"rank {group.rank} {type(error).__name__}: {error}", flush=True)
        group.abort(4)


if __name__ == "__main__":
    rank = int(next(os.environ[key] for key in ("OMPI_COMM_WORLD_RANK", "PMI_RANK") if key in os.environ))
    socket.gethostname = lambda: f"h{'abb'[rank % 3]}"
    everyone = world(deadline=20.0)
    try:
        globals()[sys.argv[1]](everyone)
    except Exception:
        traceback.print_exc()
        everyone.abort(1)
    everyone.close()
