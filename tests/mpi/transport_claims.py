"""What every transport promises, as functions that each rank of a group calls. Both transports' tests run them.

As a program, under mpirun: `transport_claims.py CLAIM...` checks the claims on the world of all ranks.
"""

from __future__ import annotations

import sys
import traceback

import numpy as np

from mpirl.transport.base import Group

FIELDS = {
    "observation": ((3, 2), "uint8"),
    "reward": ((4,), "float32"),
    "half": ((2,), "float16"),
    "flag": ((5,), "bool"),
    "episode": ((3,), "int64"),
    "wide": ((2, 1, 3), "float64"),
    "version": ((), "int64"),
    "core": ((0,), "float32"),
}


class Laps:
    """A stopwatch that remembers the laps."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def lap(self, name: str) -> None:
        self.names.append(name)


def numbers(lanes: int, seed: int) -> dict[str, np.ndarray]:
    """Arrays of FIELDS whose content depends on the seed."""
    random = np.random.default_rng(seed)
    return {name: random.integers(0, 100, (lanes, *shape)).astype(dtype) for name, (shape, dtype) in FIELDS.items()}


def lanes_per_rank(size: int) -> list[list[int]]:
    """Unequal, none on rank 0, none on some others, none at all."""
    return [
        [rank + 1 for rank in range(size)],
        [0] + [2] * (size - 1),
        [3 * (rank % 2) for rank in range(size)],
        [size - rank if rank != 1 else 0 for rank in range(size)],
        [0] * size,
    ]


def gather(group: Group, lanes: list[int], seed: int, none_if_empty: bool) -> tuple[dict[str, np.ndarray] | None, dict]:
    """Gather numbers; the whole on rank 0 (else None), and what it must be."""
    parts = [numbers(count, 100 * seed + rank) for rank, count in enumerate(lanes)]
    part = None if none_if_empty and not lanes[group.rank] else parts[group.rank]
    whole = numbers(sum(lanes), 99 + seed) if group.rank == 0 else None
    group.gather(part, whole, lanes)
    return whole, {name: np.concatenate([part[name] for part in parts]) for name in FIELDS}


def broadcast_fills_every_rank_from_rank_0(group: Group) -> None:
    for shape, dtype in [((), "int64"), ((7,), "float32"), ((300_000,), "float32"), ((2, 0), "uint8"), ((3, 5), "bool")]:
        expected = np.random.default_rng(1).integers(0, 2, shape).astype(dtype)
        array = expected.copy() if group.rank == 0 else np.zeros(shape, dtype)
        group.broadcast(array)
        np.testing.assert_array_equal(array, expected)
        array[...] = 0  # free to be overwritten once broadcast has returned


def repeated_broadcasts_keep_their_order(group: Group) -> None:
    value = np.zeros(4, np.int64)
    for iteration in range(50):
        if group.rank == 0:
            value[:] = iteration
        group.broadcast(value)
        assert value.tolist() == [iteration] * 4


def gather_places_every_lane(group: Group) -> None:
    for seed, lanes in enumerate(lanes_per_rank(group.size)):
        for none_if_empty in (False, True):
            whole, expected = gather(group, lanes, seed, none_if_empty)
            for name in FIELDS if whole is not None else ():
                np.testing.assert_array_equal(whole[name], expected[name], err_msg=f"{name}, lanes {lanes}")
                assert whole[name].dtype == expected[name].dtype


def gather_takes_long_messages(group: Group) -> None:
    lanes = [2] * group.size
    part = {"observation": np.full((2, 1_000_000), group.rank, np.uint8)}
    whole = {"observation": np.zeros((sum(lanes), 1_000_000), np.uint8)} if group.rank == 0 else None
    group.gather(part, whole, lanes)
    part["observation"][...] = 77  # free to be overwritten once gather has returned
    if whole is not None:
        for rank in range(group.size):
            assert (whole["observation"][2 * rank : 2 * rank + 2] == rank).all()


def exchange_gives_all_values_in_rank_order(group: Group) -> None:
    value = {"rank": group.rank, "text": "x" * 1000 * group.rank}
    values = group.exchange(value)
    assert values == [{"rank": rank, "text": "x" * 1000 * rank} for rank in range(group.size)]
    assert group.exchange(None) == [None] * group.size
    values[0]["rank"] = "mine alone"
    assert all(other != "mine alone" for other in group.exchange(group.rank))


def split_groups_work_apart_and_keep_the_order(group: Group) -> None:
    color = group.rank % 2
    part = group.split(color)
    members = [rank for rank in range(group.size) if rank % 2 == color]
    assert (part.rank, part.size) == (members.index(group.rank), len(members))
    assert part.exchange(group.rank) == members
    array = np.full(3, group.rank)
    part.broadcast(array)
    assert (array == members[0]).all()
    whole, expected = gather(part, [rank + 1 for rank in range(part.size)], 5, False)
    for name in FIELDS if whole is not None else ():
        np.testing.assert_array_equal(whole[name], expected[name])
    part.close()
    assert group.exchange(color) == [rank % 2 for rank in range(group.size)]


def stopwatch_hears_the_phases(group: Group) -> None:
    group.stopwatch = laps = Laps()
    group.broadcast(np.zeros(3))
    gather(group, [1] * group.size, 0, False)
    group.exchange(0)
    assert laps.names == (["broadcast", "collect", "gather"] if group.rank == 0 else ["broadcast", "gather"])


def eager_ranks_do_the_same(group: Group) -> None:
    group.patient = False
    gather_places_every_lane(group)
    broadcast_fills_every_rank_from_rank_0(group)
    group.patient = True


CLAIMS = [
    broadcast_fills_every_rank_from_rank_0,
    repeated_broadcasts_keep_their_order,
    gather_places_every_lane,
    gather_takes_long_messages,
    exchange_gives_all_values_in_rank_order,
    split_groups_work_apart_and_keep_the_order,
    stopwatch_hears_the_phases,
    eager_ranks_do_the_same,
]


def main() -> None:
    from mpirl.transport.mpi import world

    group = world(deadline=20.0)
    try:
        for claim in CLAIMS:
            if claim.__name__ in sys.argv[1:]:
                claim(group)
                sys.stdout.write(f"rank {group.rank} of {group.size}: {claim.__name__}\n")  # one write, so lines stay whole
                sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        group.abort(1)
    group.close()


if __name__ == "__main__":
    main()
