"""Gather with one sender per host: a host's workers keep their trajectories in memory that they share.

The host's first worker sends all of it, a message per field, if the ranks of the host follow each other; rank 0 copies what the
workers of its own host have straight out of their memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpirl.agreement import agree
from mpirl.trajectory import Field
from mpirl.transport.base import Arrays, Group
from mpirl.transport.datatypes import rows_type
from mpirl.transport.fields import checked, lane_bytes
from mpirl.transport.shared_memory import SharedMemory, attach, memory_size, views

SCATTERED = 2**16  # bytes; more are not received into rows here and there at once, at which Open MPI is 20 times slower
READY, FREE, FIELDS = 1000, 1001, 1002  # tags: a worker has written its rows, may write again; and one for each field


@dataclass(frozen=True)
class Party:
    """The ranks of one host that gather together. workers: those with lanes, in order; leader: rank 0 or the first of them."""

    leader: int
    workers: tuple[int, ...]
    lanes: tuple[int, ...]

    @property
    def shares(self) -> bool:
        """Whether there is anybody to share memory with."""
        return self.workers != (self.leader,)

    def rows_of(self, rank: int) -> slice:
        """A worker's rows in the memory of the party."""
        start = sum(self.lanes[: self.workers.index(rank)])
        return slice(start, start + self.lanes[self.workers.index(rank)])


def parties(hosts: Sequence[str], lanes: Sequence[int]) -> list[Party]:
    """A party for each host with lanes. hosts, lanes: of every rank."""
    ranks_of: dict[str, list[int]] = {}
    for rank, host in enumerate(hosts):
        if lanes[rank]:
            ranks_of.setdefault(host, []).append(rank)
    return [
        Party(0 if host == hosts[0] else ranks[0], tuple(ranks), tuple(lanes[rank] for rank in ranks))
        for host, ranks in ranks_of.items()
    ]


class Room:
    """The memory of one layout of trajectories, and the gathers of it. `mine` is this rank's part, None if it has no lanes.

    comm: an mpi4py communicator on which nobody else uses these tags. type_of(bytes) is the datatype of a lane. wait: see
    MpiGroup._wait. lanes: of every rank. shared: the arrays of this rank's party, None if it shares with nobody.
    """

    def __init__(
        self,
        comm: Any,
        type_of: Callable[[int], Any],
        wait: Callable[..., None],
        table: Mapping[str, Field],
        lanes: Sequence[int],
        everyone: Sequence[Party],
        shared: dict[str, np.ndarray] | None,
    ):
        self._comm, self._type_of, self._wait, self._rank = comm, type_of, wait, comm.Get_rank()
        self._table, self._lanes, self._parties, self._shared = dict(table), tuple(lanes), list(everyone), shared
        self._party = party_of(self._rank, everyone)
        self._names = sorted(name for name, field in table.items() if field.nbytes)
        self._rows = [slice(sum(lanes[:rank]), sum(lanes[: rank + 1])) for rank in range(len(lanes))]  # in the batch
        self._types: dict[tuple[int, int], Any] = {}  # by leader and bytes of a lane: what it sends, in the batch
        self._under_way: list[Any] = []  # requests: MPI may write into their buffers as long as they are not complete
        self._token = np.zeros(0, np.uint8)
        self.mine = None
        if self._party and lanes[self._rank]:
            own = self._party.rows_of(self._rank)
            zeros = lambda field: np.zeros((own.stop - own.start, *field.shape), field.dtype)
            self.mine = {name: shared[name][own] if shared else zeros(field) for name, field in table.items()}

    def fits(self, arrays: Arrays | None, lanes: Sequence[int]) -> bool:
        """Whether a gather of `arrays` (this rank's part or, on rank 0, the whole) with these lanes is of this layout.

        All ranks that have arrays come to the same answer.
        """
        if arrays is None or tuple(lanes) != self._lanes or arrays.keys() != self._table.keys():
            return False
        return all((arrays[n].shape[1:], arrays[n].dtype) == (f.shape, f.dtype) for n, f in self._table.items())

    def gather(self, part: Arrays | None, whole: Arrays | None, lap: Callable[[str], None]) -> None:
        """As Group.gather. lap: of the stopwatch."""
        if self._lanes[self._rank]:
            self._take_in(part)
        if self._rank == 0:
            self._receive(whole, lap)
        elif self._party and self._rank == self._party.leader:
            self._send()
        elif self._party:
            self._await(self._signal(self._party.leader, READY), self._hear(self._party.leader, FREE))
        self._under_way.clear()
        lap("gather")

    def close(self) -> None:
        """Give back what is held in MPI; the memory goes with its arrays."""
        for datatype in self._types.values():
            datatype.Free()
        self._types.clear()

    def _take_in(self, part: Arrays | None) -> None:
        """Have `part` in the room, where it is mostly already."""
        assert part is not None and self.mine is not None, f"rank {self._rank} has lanes but no part"
        for name in self._names:
            if not np.may_share_memory(self.mine[name], part[name]):
                self.mine[name][...] = part[name]

    def _send(self) -> None:
        """As the leader of a host without rank 0."""
        others = [rank for rank in self._party.workers if rank != self._rank]
        self._await(*(self._hear(rank, READY) for rank in others))
        arrays, sends = self._shared or self.mine, []
        for tag, name in enumerate(self._names, FIELDS):
            messages = self._messages(self._party, lane_bytes(arrays[name]))
            for part in parts_of(messages):
                sends.append(self._field(self._comm.Isend, arrays[name][part], tag, 0))
        self._await(*sends)
        self._await(*(self._signal(rank, FREE) for rank in others))

    def _receive(self, whole: Arrays | None, lap: Callable[[str], None]) -> None:
        """As rank 0."""
        assert whole is not None, "rank 0 needs arrays to gather into"
        fields = [checked(name, whole, sum(self._lanes)) for name in self._names]
        senders = [party for party in self._parties if party.leader]
        coming = [
            self._rows_from(party.leader, rows, array, tag)
            for party in senders
            for tag, array in enumerate(fields, FIELDS)
            for rows in self._messages(party, lane_bytes(array))
        ]
        others = [rank for rank in self._party.workers if rank] if self._party else []
        ready = [self._hear(rank, READY) for rank in others]
        self._under_way += [*coming, *ready]
        self._wait(self._under_way, "gather", until_arrival=True)
        lap("collect")
        self._await(*ready)
        if self._party:
            self._copy(fields)
        self._await(*coming, *(self._signal(rank, FREE) for rank in others))

    def _copy(self, fields: Sequence[np.ndarray]) -> None:
        """From the memory that rank 0 shares (or its own) into the batch."""
        runs = joined([self._rows[rank] for rank in self._party.workers])
        for name, array in zip(self._names, fields):
            for part, run in zip(parts_of([[run] for run in runs]), runs):
                array[run] = (self._shared or self.mine)[name][part]

    def _messages(self, party: Party, lane: int) -> list[list[slice]]:
        """The messages in which a field with so many bytes per lane comes from a party: rows of the batch, in their order."""
        runs = joined([self._rows[rank] for rank in party.workers])
        return [runs] if sum(party.lanes) * lane <= SCATTERED else [[run] for run in runs]

    def _rows_from(self, leader: int, rows: list[slice], array: np.ndarray, tag: int) -> Any:
        """Start to receive a message straight into these rows of the batch."""
        lane = lane_bytes(array)
        if len(rows) == 1:
            return self._field(self._comm.Irecv, array[rows[0]], tag, leader)
        if (leader, lane) not in self._types:
            self._types[leader, lane] = rows_type(self._type_of(lane), rows)
        return self._comm.Irecv([array, 1, self._types[leader, lane]], leader, tag)

    def _field(self, start: Callable[..., Any], array: np.ndarray, tag: int, peer: int) -> Any:
        return start([array, len(array), self._type_of(lane_bytes(array))], peer, tag)

    def _signal(self, rank: int, tag: int) -> Any:
        return self._comm.Isend(self._token, rank, tag)

    def _hear(self, rank: int, tag: int) -> Any:
        return self._comm.Irecv(self._token, rank, tag)

    def _await(self, *requests: Any) -> None:
        self._under_way += requests
        self._wait(list(requests), "gather")


def joined(rows: Sequence[slice]) -> list[slice]:
    """The same rows, with slices that follow each other made one."""
    found: list[slice] = []
    for part in rows:
        if found and found[-1].stop == part.start:
            found[-1] = slice(found[-1].start, part.stop)
        else:
            found.append(part)
    return found


def parts_of(messages: Sequence[Sequence[slice]]) -> list[slice]:
    """The rows that each message takes of the memory of a party, where those of all messages follow each other."""
    sizes = [sum(run.stop - run.start for run in rows) for rows in messages]
    return [slice(sum(sizes[:index]), sum(sizes[: index + 1])) for index in range(len(sizes))]


def party_of(rank: int, everyone: Sequence[Party]) -> Party | None:
    """The party that a rank belongs to."""
    return next((party for party in everyone if rank == party.leader or rank in party.workers), None)


def make_room(
    group: Group,
    hosts: Sequence[str],
    table: Mapping[str, Field],
    lanes: Sequence[int],
    comm: Any,
    type_of: Callable[[int], Any],
    wait: Callable[..., None],
) -> Room | None:
    """* The room of these trajectories; None if no host has several workers: then nothing is gained. hosts: of every rank.

    Where a party cannot have its memory, all ranks raise AgreedError.
    """
    everyone = parties(hosts, lanes)
    if all(len(party.workers) < 2 for party in everyone):
        return None
    party = party_of(group.rank, everyone)
    shared = share(group, party if party and party.shares else None, table)
    return Room(comm, type_of, wait, table, lanes, everyone, shared)


def share(group: Group, party: Party | None, table: Mapping[str, Field]) -> dict[str, np.ndarray] | None:
    """* The arrays that a party's ranks share, for all of its lanes; None for a rank that shares with nobody."""
    num_lanes, leads = sum(party.lanes) if party else 0, party is not None and group.rank == party.leader
    make = lambda: SharedMemory(memory_size(table, num_lanes)) if leads else None
    made, addresses = agree(group, make, lambda made: made and made.address)
    try:
        attached, _ = agree(group, lambda: attach(addresses[party.leader]) if party and not leads else None)
    finally:
        if made:
            made.close()
    memory = made.map if made else attached
    return None if memory is None else views(memory, table, num_lanes)
