"""The conformance kit of transports: claims that every rank of a group checks on its own data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpirl.transport.base import Group

FIELDS = {"observation": ((3, 2), "uint8"), "reward": ((4,), "float32"), "episode": ((2,), "int64"), "core": ((0,), "float32")}


def ranks_are_numbered(group: Group) -> None:
    ranks = group.exchange((group.rank, group.size))
    assert ranks == [(rank, len(ranks)) for rank in range(group.size)], f"(rank, size) of all ranks are {ranks}"
    assert isinstance(group.host, str) and group.host, f"host is {group.host!r}"


def broadcast_fills_every_array_from_rank_0(group: Group) -> None:
    for shape, dtype in (((1000,), "float32"), ((3, 5), "uint8"), ((), "int64"), ((0,), "float32")):
        for turn in range(3):  # a slow rank must not see the next turn's values
            expected = _numbers(shape, dtype, turn)
            array = expected.copy() if group.rank == 0 else _numbers(shape, dtype, 99)
            group.broadcast(array)
            _check_equal(array, expected, f"{dtype} {list(shape)} on rank {group.rank}")
            array[...] = 0  # ours again when broadcast has returned


def gather_concatenates_the_lanes_in_rank_order(group: Group) -> None:
    ranks = range(group.size)
    for lanes in ([2 for _ in ranks], list(ranks), [group.size - rank for rank in ranks], [3 * (rank % 2) for rank in ranks]):
        for turn in range(3):
            _gather(group, lanes, turn)


def a_gather_goes_on_beside_what_rank_0_does(group: Group) -> None:
    for beside in (True, False, True):
        _gather(group, [2 for _ in range(group.size)], int(beside), beside)


def gather_takes_zero_lanes_everywhere(group: Group) -> None:
    _gather(group, [0] * group.size, 0)


def exchange_gives_all_values_to_all(group: Group) -> None:
    mine = {"rank": group.rank, "list": [group.rank] * group.rank}
    everyone = group.exchange(mine)
    expected = [{"rank": rank, "list": [rank] * rank} for rank in range(group.size)]
    assert everyone == expected, f"rank {group.rank} got {everyone}, expected {expected}"
    everyone[0]["list"].append("mine alone")
    again = group.exchange(mine["list"])
    assert again[-1] == [group.size - 1] * (group.size - 1), f"rank {group.rank} got {again}: values are shared between ranks"


def split_makes_groups_by_color(group: Group) -> None:
    color = group.rank % 2
    members = [rank for rank in range(group.size) if rank % 2 == color]
    part = group.split(color)
    place = (members.index(group.rank), len(members))
    assert (part.rank, part.size) == place, f"rank {group.rank} became {part.rank} of {part.size}"
    assert part.exchange(group.rank) == members, f"the ranks of color {color} are not {members}"
    array = np.full(3, color if part.rank == 0 else -1)
    part.broadcast(array)
    _check_equal(array, np.full(3, color), f"broadcast among the ranks of color {color}")
    _gather(part, [1] * part.size, 0)
    group.exchange(None)


def rank_0_hears_the_phases(group: Group) -> None:
    laps: list[str] = []
    group.stopwatch = type("Laps", (), {"lap": staticmethod(laps.append)})()
    group.broadcast(np.zeros(2, np.float32))
    _gather(group, [1] * group.size, 0)
    if group.rank == 0:
        assert laps == ["broadcast", "collect", "gather"], f"the stopwatch heard {laps}, must be broadcast, collect, gather"


CLAIMS = (
    ranks_are_numbered,
    broadcast_fills_every_array_from_rank_0,
    gather_concatenates_the_lanes_in_rank_order,
    gather_takes_zero_lanes_everywhere,
    a_gather_goes_on_beside_what_rank_0_does,
    exchange_gives_all_values_to_all,
    split_makes_groups_by_color,
    rank_0_hears_the_phases,
)


def _gather(group: Group, lanes: Sequence[int], turn: int, beside: bool = False) -> None:
    """Gather numbers that tell rank, lane and turn, and check them on rank 0."""
    part = _lanes(lanes[group.rank], turn, group.rank) if lanes[group.rank] else None
    if part is not None and group.rank % 2:
        part = dict(reversed(part.items()))  # fields go by name, not by order
    whole = _lanes(sum(lanes), 99, 99) if group.rank == 0 else None
    with group.gathering(part, whole, lanes, beside):
        np.sort(np.arange(100_000)[::-1])  # as rank 0 would compute
    for array in (part or {}).values():
        array[...] = 0  # ours again when gather has returned
    if whole is not None:
        parts = [_lanes(count, turn, rank) for rank, count in enumerate(lanes)]
        for name, array in whole.items():
            _check_equal(array, np.concatenate([part[name] for part in parts]), f"{name} gathered from lanes {list(lanes)}")


def _lanes(count: int, turn: int, rank: int) -> dict[str, np.ndarray]:
    return {name: _numbers((count, *shape), dtype, 10 * rank + turn) for name, (shape, dtype) in FIELDS.items()}


def _numbers(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 100, shape).astype(dtype)


def _check_equal(array: np.ndarray, expected: np.ndarray, what: str) -> None:
    assert np.array_equal(array, expected), f"{what}: got {array.ravel()[:8]}..., expected {expected.ravel()[:8]}..."
