"""A worker of policy=central: groups of its lanes take turns, so that some are stepped while rank 0 decides for others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, zip_longest
from typing import Any

import numpy as np

from mpirl.assembly import LazyEmulator
from mpirl.emulators.base import EmulatorBatch
from mpirl.emulators.lanes import make_emulator
from mpirl.policies.central import CentralPolicy, Messages
from mpirl.schedule import Command
from mpirl.trajectory import Trajectory
from mpirl.transport.base import Group
from mpirl.worker import Lanes, Noise, Worker


class Parts:
    """A worker's emulators, a batch for every slot that has lanes.

    counts: lanes by slot. changes: settings that are other on this rank.
    """

    def __init__(self, config: Mapping[str, Any], counts: Sequence[int], changes: Mapping[str, Any] | None = None):
        self._make = lambda count: make_emulator(config, count, changes)
        self.counts = list(counts)
        self.batches = {slot: self._make(count) for slot, count in enumerate(counts) if count}
        any_batch = next(iter(self.batches.values()), None) or self._make(0)  # a rank without lanes tells its specs too
        self.specs, self.reseed_every = any_batch.specs, any_batch.reseed_every

    def others(self) -> dict[int, EmulatorBatch]:
        """As many again, made when they are first needed."""
        make = lambda slot: LazyEmulator(self.batches[slot], lambda: self._make(self.counts[slot]))
        return {slot: make(slot) for slot in self.batches}


class Turns:
    """Stands for one Worker: several on parts of `trajectory`, which collect by turns. end: called after they are closed."""

    def __init__(
        self,
        workers: Sequence[Worker],
        trajectory: Trajectory,
        plays_on: Callable[[bool], bool],
        alive: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda text: None,
        end: Callable[[], None] = lambda: None,
    ):
        self.workers, self.trajectory, self.plays_on = list(workers), trajectory, plays_on
        self._alive, self._say, self._end = alive, say, end

    def collect(self, command: Command) -> None:
        """* With rank 0's actor: play T steps in every lane."""
        start = time.perf_counter()
        self._alive()
        for _ in zip_longest(*(worker.playing(command) for worker in self.workers)):  # each goes on until it has asked
            pass
        num_steps, seconds = self.trajectory["collected"].sum(), time.perf_counter() - start
        self._say(f"iteration {command.iteration}: {num_steps:,} steps so far, collected in {seconds:.3f} s")

    def restart(self) -> None:
        """Begin anew with episode 0 in every lane at the next collect."""
        for worker in self.workers:
            worker.restart()

    def close(self) -> None:
        """Close the emulators."""
        for worker in self.workers:
            worker.close()
        self._end()


def make_workers(
    emulators: Mapping[int, EmulatorBatch],
    messages: Messages,
    trajectory: Trajectory,
    lanes: Lanes,
    noise: Noise | None,
    alive: Callable[[], None],
) -> Iterator[Worker]:
    """A worker for every slot that has lanes, which all lie in slot order in `trajectory` and `lanes`."""
    ends = list(accumulate(messages.counts, initial=0))
    for slot in messages.slots:
        rows = slice(ends[slot], ends[slot + 1])
        part = Trajectory(trajectory.layout, {name: array[rows] for name, array in trajectory.items()})
        own = replace(lanes, first=lanes.first + rows.start, index=lanes.index[rows].copy())
        policy = CentralPolicy(messages, slot, trajectory.layout.context + 1)
        yield Worker(emulators[slot], policy, part, own, noise, alive=alive)


def vote(group: Group, lanes: Sequence[int], unfinished: bool) -> bool:
    """* Whether any rank's lanes are unfinished: then all play on, since rank 0 answers all or none."""
    part = {"unfinished": np.full(lanes[group.rank], unfinished)}
    whole = {"unfinished": np.zeros(sum(lanes), bool)} if group.rank == 0 else None
    group.gather(part, whole, lanes)
    result = np.array([whole["unfinished"].any() if whole else False])
    group.broadcast(result)
    return bool(result[0])
