"""Broadcast in two levels: rank 0 to the first rank of every host, and those to the others of their host.

MPI's own tree does not know hosts: with h ranks per host, h copies of the weights would cross the link of every host.
`comm` is an mpi4py communicator, `MPI` the module mpi4py.MPI.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LARGE = 2**16  # bytes; what is smaller goes by MPI's tree in one go


def levels(comm: Any, MPI: Any, hosts: Sequence[str]) -> list[Any]:
    """* New communicators for this rank's part in a broadcast, one after the other; none where hosts make no difference.

    hosts: of every rank. Waits without a deadline: call it when all are known to be there.
    """
    places = list(dict.fromkeys(hosts))
    if len(places) in (1, len(hosts)):
        return []
    rank = comm.Get_rank()
    is_first = hosts.index(hosts[rank]) == rank
    between = comm.Split(0 if is_first else MPI.UNDEFINED, rank)
    within = comm.Split(places.index(hosts[rank]), rank)
    return [each for each in (between, within) if each != MPI.COMM_NULL]
