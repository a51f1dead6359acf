"""Gathers beyond 2 GiB: `large_batches.py direct|host limits|lane|batch` under mpirun.

limits: the transport's claims, with datatypes that are put together from blocks of 7 bytes as those of large lanes are from
blocks of 1 GiB. lane: one of more than 2 GiB, marked where 32 bits end. batch: many lanes, more than 2 GiB in sum.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from functools import partial

import numpy as np
from by_host_claims import Roomy, trajectories_live_in_the_room
from transport_claims import gather_places_every_lane, gather_takes_long_messages

from mpirl.trajectory import Field
from mpirl.transport import mpi
from mpirl.transport.base import Group
from mpirl.transport.datatypes import lane_type
from mpirl.transport.mpi import MpiGroup

GIB = 2**30
MARKS = (0, 1, 2**31 - 1, 2**31, 2**31 + 1, -2, -1)


def gather(group: Group, lane_bytes: int, lanes: list[int], mode: str) -> None:
    """Gather lanes of so many bytes. Only the marks are written: the rest of a part are pages that take no memory."""
    table = {"observation": Field((lane_bytes,), "uint8"), "version": Field((), "int64")}
    make = lambda number: {name: np.zeros((number, *field.shape), field.dtype) for name, field in table.items()}
    part = group.room(table, lanes, mode)
    part = part or make(lanes[group.rank])
    whole = make(sum(lanes)) if group.rank == 0 else None
    marks = [mark for mark in MARKS if mark < lane_bytes]
    owner = [rank for rank, number in enumerate(lanes) for _ in range(number)]
    for row, lane in enumerate(lane for lane, rank in enumerate(owner) if rank == group.rank):
        part["observation"][row, marks] = 1 + lane
        part["version"][row] = lane
    start = time.monotonic()
    group.gather(part, whole, lanes)
    if whole is None:
        return
    seconds, size = time.monotonic() - start, sum(lanes) * lane_bytes
    assert whole["version"].tolist() == list(range(len(owner)))
    for lane in range(len(owner)):
        found = whole["observation"][lane]
        assert (found[marks] == 1 + lane).all(), (lane, found[marks])
        assert np.count_nonzero(found) == len({mark % lane_bytes for mark in marks}), lane
    print(f"{mode}: {size / GIB:.2f} GiB in lanes {lanes} of {lane_bytes:,} bytes, {seconds:.1f} s", flush=True)


def lane(group: Group, mode: str) -> None:
    gather(group, 2 * GIB + 12345, [0, 1, *([0] * (group.size - 2))], mode)


def batch(group: Group, mode: str) -> None:
    gather(group, 300_000_001, [0, *([8 // (group.size - 1)] * (group.size - 1))], mode)


def limits(group: Group, mode: str) -> None:
    for claim in (gather_places_every_lane, gather_takes_long_messages, trajectories_live_in_the_room):
        claim(group)
    print("limits held", flush=True)


if __name__ == "__main__":
    way, what = sys.argv[1:]
    rank = int(next(os.environ[key] for key in ("OMPI_COMM_WORLD_RANK", "PMI_RANK") if key in os.environ))
    socket.gethostname = lambda: f"h{'abb'[rank % 3]}"
    if what == "limits":
        mpi.lane_type = partial(lane_type, largest=7)
        mpi.MpiGroup = Roomy if way == "host" else MpiGroup
    everyone = mpi.world(deadline=60.0)
    try:
        globals()[what](everyone, way)
    except Exception:
        traceback.print_exc()
        everyone.abort(1)
    everyone.close()
