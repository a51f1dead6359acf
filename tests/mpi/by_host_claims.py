"""Every gather of a world of hosts that share memory: `by_host_claims.py HOSTS_IN_A_CYCLE CLAIM...` under mpirun.

Rank r says that it is on host "h" + HOSTS[r % len(HOSTS)]. The claims are those of the transport and of the public kit,
and some on the shared memory itself; each gather is given a room of its own first, so that it goes by host wherever
that can be.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Sequence

import numpy as np
import transport_claims

from mpirl import testing_transport
from mpirl.transport import levels, mpi
from mpirl.transport.base import Arrays
from mpirl.transport.mpi import MpiGroup
from mpirl.trajectory import Field

TABLE = {"observation": Field((5, 7), "uint8"), "reward": Field((3,), "float32"), "core": Field((0,), "float32")}
TABLE |= {"version": Field((), "int64")}


class Roomy(MpiGroup):
    """Makes a room for each gather that it has none for; `gathers_by_host` counts those that went there."""

    gathers_by_host = 0

    def gather(self, part: Arrays | None, whole: Arrays | None, lanes: Sequence[int]) -> None:
        arrays = whole if self.rank == 0 else part
        mine = arrays and {name: Field(array.shape[1:], array.dtype.name) for name, array in arrays.items()}
        if not all(self.exchange(self._room is not None and (arrays is None or self._room.fits(arrays, lanes)))):
            self.room(next(filter(None, self.exchange(mine))), lanes, "host")
        Roomy.gathers_by_host += self._room is not None and self._room.fits(arrays, lanes)
        super().gather(part, whole, lanes)


def trajectories_live_in_the_room(group: MpiGroup) -> None:
    """What is written there is gathered, iteration after iteration, and no copy is made on the way."""
    for lanes in ([0, *([3] * (group.size - 1))], list(range(group.size)), [2] * group.size):
        mine = group.room(TABLE, lanes, "host")
        whole = {n: np.zeros((sum(lanes), *f.shape), f.dtype) for n, f in TABLE.items()} if group.rank == 0 else None
        assert (mine is None) == (lanes[group.rank] == 0 or group._room is None)
        part = mine or {n: np.zeros((lanes[group.rank], *f.shape), f.dtype) for n, f in TABLE.items()}
        assert all(not array.any() and array.flags.c_contiguous for array in part.values())
        for iteration in range(5):
            for number, array in enumerate(part.values()):
                array[...] = 40 * number + 10 * group.rank + iteration
            group.gather(part, whole, lanes)
            for number, array in enumerate((whole or {}).values()):
                rank_of = np.repeat(np.arange(group.size), lanes).reshape(-1, *[1] * (array.ndim - 1))
                assert (array == 40 * number + 10 * rank_of + iteration).all(), (lanes, iteration, number)


def other_gathers_go_directly(group: MpiGroup) -> None:
    """Also of those who have nothing and do not know what is gathered."""
    lanes = [0, *(rank % 2 * 2 for rank in range(1, group.size))]
    mine = group.room(TABLE, lanes, "host")
    for table in (TABLE, {"return": Field((4,), "float64")}, {**TABLE, "version": Field((), "int32")}, TABLE):
        make = lambda number, value: {n: np.full((number, *f.shape), value, f.dtype) for n, f in table.items()}
        part = make(lanes[group.rank], group.rank) if lanes[group.rank] else None
        whole = make(sum(lanes), 0) if group.rank == 0 else None
        MpiGroup.gather(group, part, whole, lanes)
        for array in (whole or {}).values():
            assert (array.T == np.repeat(np.arange(group.size), lanes)).all()
    assert mine is None or lanes[group.rank]


def hosts_of_one_worker_have_no_room(group: MpiGroup) -> None:
    lanes = [0, *([1] * (group.size - 1))]
    hosts = group.exchange(group.host)[1:]
    mine = group.room(TABLE, lanes, "host")
    assert (group._room is None) == (len(set(hosts)) == len(hosts)), hosts
    assert group.room(TABLE, lanes, "direct") is None and group._room is None
    del mine


def nothing_has_a_name(group: MpiGroup) -> None:
    before = set(os.listdir("/dev/shm"))
    group.exchange(None)
    group.room(TABLE, [0, *([2] * (group.size - 1))], "host")
    assert not [name for name in set(os.listdir("/dev/shm")) - before if "mpirl" in name]
    group.exchange(None)


def weights_come_to_each_host_once(group: MpiGroup) -> None:
    """From rank 0 to the first rank of each host, and from there to the others."""
    hosts = group.exchange(group.host)
    sizes = [comm.Get_size() for comm in group._levels]
    is_first = hosts.index(group.host) == group.rank
    if len(set(hosts)) in (1, group.size):
        assert sizes == []
    else:
        assert sizes == ([len(set(hosts))] if is_first else []) + [hosts.count(group.host)]
    array = np.arange(100_000) if group.rank == 0 else np.zeros(100_000, int)
    group.broadcast(array)
    assert (array == np.arange(100_000)).all()


OWN = [
    weights_come_to_each_host_once,
    trajectories_live_in_the_room,
    other_gathers_go_directly,
    hosts_of_one_worker_have_no_room,
    nothing_has_a_name,
]
CLAIMS = [*OWN, *transport_claims.CLAIMS, *testing_transport.CLAIMS]


def main() -> None:
    hosts, names = sys.argv[1], sys.argv[2:]
    rank = int(next(os.environ[key] for key in ("OMPI_COMM_WORLD_RANK", "PMI_RANK") if key in os.environ))
    socket.gethostname = lambda: f"h{hosts[rank % len(hosts)]}"
    mpi.MpiGroup, levels.LARGE = Roomy, 0
    group = mpi.world(deadline=20.0)
    try:
        for claim in CLAIMS:
            if claim.__name__ in names or not names:
                claim(group)
        group.exchange(None)
        sys.stdout.write(f"rank {group.rank} of {group.size}: {Roomy.gathers_by_host} gathers by host\n")
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        group.abort(1)
    group.close()


if __name__ == "__main__":
    main()
