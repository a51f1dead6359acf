"""Programs for test_transport.py in which ranks fall silent, fail or end the job: `transport_trouble.py SCENARIO`."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable

import numpy as np

from mpirl.errors import RankFailed, RankSilent
from mpirl.transport.mpi import MpiGroup, world


def silent(group: MpiGroup) -> None:
    """Rank 1 sleeps instead of gathering."""
    group.deadline = 1.0
    if group.rank == 1:
        time.sleep(60)
    expect_silence(group)


def stopped(group: MpiGroup) -> None:
    """Rank 2 is stopped by a signal."""
    group.deadline = 1.0
    if group.rank == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    expect_silence(group)


def root_silent(group: MpiGroup) -> None:
    """Rank 0 sleeps; the others wait for its broadcast."""
    group.deadline = -2.0  # workers wait 2 * deadline + 5 + 0.2 * rank seconds: here 1.2 and 1.4
    if group.rank == 0:
        time.sleep(60)
    expect_silence(group, lambda: group.broadcast(np.zeros(3)))


def startup() -> None:
    """Rank 1 does not come to the start-up."""
    from mpi4py import MPI

    if MPI.COMM_WORLD.Get_rank() == 1:
        time.sleep(60)
    world(deadline=2.0)


def slow(group: MpiGroup) -> None:
    """Rank 1 takes three deadlines, but gives signs of life."""
    group.deadline = 0.5
    for _ in range(15 if group.rank == 1 else 0):
        time.sleep(0.1)
        group.heartbeat()
    gather_one_lane(group)
    print(f"rank {group.rank} gathered", flush=True)


def report(group: MpiGroup) -> None:
    """Rank 1 fails with a long report; rank 0 hears of it in its wait and ends the job."""
    if group.rank == 1:
        group.fail("the dog ate it\n" + "x" * 100_000 + "\nlast line")
        print("still here", flush=True)
        time.sleep(60)
    try:
        gather_one_lane(group)
    except RankFailed as failure:
        print(f"RankFailed {failure.rank} {failure.host == group.host} {failure.report[:14]!r} {failure.report[-9:]!r}")
        group.abort(3)


def abort(group: MpiGroup) -> None:
    """Rank 1 ends the job while the others wait or sleep."""
    if group.rank == 1:
        print("last words")
        group.abort(7)
    if group.rank == 2:
        time.sleep(60)
    gather_one_lane(group)


def busy(group: MpiGroup) -> None:
    """Everyone waits 2 s for rank 1; rank 0 and 2 say how much CPU that took."""
    group.exchange(None)
    used, start = time.process_time(), time.monotonic()
    if group.rank == 1:
        time.sleep(2)
    group.exchange(None)
    print(f"rank {group.rank} busy {(time.process_time() - used) / (time.monotonic() - start):.3f}", flush=True)


def counts(group: MpiGroup) -> None:
    """Counts and displacements that MPI gets are lanes, and the datatype is one lane."""
    comm, calls = group._comm, []

    class Recorder:
        def Igatherv(self, send, receive):
            calls.append((send, receive))
            return comm.Igatherv(send, receive)

        def __getattr__(self, name):
            return getattr(comm, name)

    group._comm = Recorder()
    lanes = [2, 0, 3][: group.size]
    part = {"observation": np.zeros((lanes[group.rank], 5, 100), np.float32)}
    whole = {"observation": np.zeros((sum(lanes), 5, 100), np.float32)} if group.rank == 0 else None
    group.gather(part, whole, lanes)
    [(send, receive)] = calls
    print(f"rank {group.rank} sends {send[1]} of {send[2].Get_size()} bytes", flush=True)
    if receive is not None:
        print(f"rank 0 receives {receive[1]} of {receive[2].Get_size()} bytes", flush=True)
    group._comm = comm


def forever(group: MpiGroup) -> None:
    """All wait for rank 0, which sleeps, until the launcher is killed."""
    print(f"pid {os.getpid()}", flush=True)
    if group.rank == 0:
        time.sleep(60)
    group.exchange(None)


def gather_one_lane(group: MpiGroup) -> None:
    whole = {"reward": np.zeros((group.size, 3))} if group.rank == 0 else None
    group.gather({"reward": np.ones((1, 3))}, whole, [1] * group.size)


def expect_silence(group: MpiGroup, wait: Callable[[], None] | None = None) -> None:
    start = time.monotonic()
    try:
        (wait or (lambda: gather_one_lane(group)))()
    except RankSilent as silence:
        print(f"rank {group.rank} after {time.monotonic() - start:.1f} s: {silence}", flush=True)
        group.abort(4)


if __name__ == "__main__":
    if sys.argv[1] == "startup":
        startup()
    everyone = world(deadline=20.0)
    try:
        globals()[sys.argv[1]](everyone)
    except Exception:
        traceback.print_exc()
        everyone.abort(1)
    everyone.close()
