"""The thread transport: a world in one process, every rank a thread, rank 0 the calling one. Needs no MPI."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from mpirl.transport import beside, startup, waiting
from mpirl.transport.base import Group
from mpirl.transport.hub import Aborted, Hub, World
from mpirl.transport.steps import Arrays as StepArrays
from mpirl.transport.steps import Board, Lanes, ThreadSteps

Result = TypeVar("Result")
Arrays = Mapping[str, np.ndarray]


def run_threads(size: int, target: Callable[[ThreadGroup], Result], deadline: float = Group.deadline) -> list[Result]:
    """Run `target(group)` on `size` ranks and return what each returned, in rank order.

    An exception of rank 0 is raised as it is. One of another rank is raised as RankFailed, out of rank 0's wait.
    """
    world, hub, results = World(size), Hub(range(size)), [None] * size
    groups = [ThreadGroup(world, hub, rank, deadline) for rank in range(size)]

    def work(rank: int) -> None:
        try:
            results[rank] = target(groups[rank])
        except Aborted:
            pass
        except BaseException:
            world.record_failure(rank, traceback.format_exc())
        finally:
            world.finish(rank)

    threads = [threading.Thread(target=work, args=(rank,), name=f"rank {rank}", daemon=True) for rank in range(1, size)]
    try:
        for thread in threads:
            thread.start()
        results[0] = target(groups[0])
        world.finish(0)
        groups[0].wait_for("end of the run", lambda: [rank for rank in range(size) if not world.finished[rank]])
    finally:
        world.end()
        _join(threads, seconds=1.0)
    return results


class ThreadGroup(Group):
    """The ranks of a hub. `grace`: seconds that `fail` waits for rank 0 to end the world."""

    grace: float = 4.0

    def __init__(self, world: World, hub: Hub, rank: int, deadline: float):
        super().__init__()
        self.rank, self.size, self.host = rank, len(hub.members), socket.gethostname()
        self.deadline = deadline
        self._world, self._hub, self._number = world, hub, 0

    def broadcast(self, array: np.ndarray) -> None:
        self._enter(array)
        if self.rank:
            self._wait_entered("broadcast", [0])
            source = self._hub.brought[0]
            assert (source.shape, source.dtype) == (array.shape, array.dtype), "broadcast needs equal shapes and dtypes"
            np.copyto(array, source)
        self._leave()
        if self.rank == 0:  # the array stays as it is until all have copied it
            self._wait_left("broadcast", range(self.size))
        self.stopwatch.lap("broadcast")

    def gather(self, part: Arrays | None, whole: Arrays | None, lanes: Sequence[int]) -> None:
        assert len(lanes) == self.size, f"lanes of {len(lanes)} ranks in a group of {self.size}"
        self._enter(part)
        if self.rank == 0:
            assert whole is not None, "rank 0 needs arrays to gather into"
            self._wait_entered("gather", range(self.size))
            self.stopwatch.lap("collect")
            for name in sorted(whole):
                _concatenate(name, self._hub.brought, whole[name], lanes)
        else:
            self._wait_left("gather", [0])
        self._leave()
        self.stopwatch.lap("gather")

    gathering = beside.gathering

    def exchange(self, value: Any) -> list[Any]:
        self._enter(pickle.dumps(value))  # pickled as between processes, so that ranks share no objects
        self._wait_entered("exchange", range(self.size))
        values = [pickle.loads(pickled) for pickled in self._hub.brought]
        self._leave()
        self._wait_left("exchange", range(self.size))  # what was brought stays until all have read it
        return values

    def steps(self, questions: StepArrays, answers: StepArrays, lanes: Lanes) -> ThreadSteps:
        self._enter(Board(questions, answers, self.size))
        self._wait_entered("start-up", [0])
        board = self._hub.brought[0]
        self._leave()
        self._wait_left("start-up", range(self.size))
        return ThreadSteps(self.rank, self._world.changed, self.wait_for, board, questions, answers, lanes)

    def split(self, color: int) -> ThreadGroup:
        colors = self.exchange(color)
        ranks = [rank for rank in range(self.size) if colors[rank] == color]
        with self._world.changed:
            hub = self._hub.parts.setdefault((self._number, color), Hub([self._hub.members[rank] for rank in ranks]))
        group = ThreadGroup(self._world, hub, ranks.index(self.rank), self.deadline)
        group.patient = self.patient
        return group

    def interrupt(self) -> None:
        super().interrupt()
        with self._world.changed:
            self._world.changed.notify_all()

    def heartbeat(self) -> None:
        self._hub.seen[self.rank] = time.monotonic()

    def fail(self, report: str) -> None:
        if self._member == 0:
            return
        self._world.record_failure(self._member, report)
        if self._world.wait_ended(self.grace):
            raise Aborted

    def abort(self, code: int) -> None:
        """Rank 0 raises SystemExit, at once or in its next wait. If it is not waiting, the process exits after a second."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._world.record_exit(code)
        if self._member == 0:
            raise SystemExit(code)
        if not self._world.wait_ended(1.0):
            os._exit(code)
        raise Aborted

    def close(self) -> None:
        """Nothing to give back."""

    def wait_for(self, what: str, missing: Callable[[], list[int]]) -> None:
        """Wait until `missing()` names no more ranks."""
        looks, limit, rhythm = waiting.Looks(self.deadline), waiting.limit(self.rank, self.deadline), startup.rhythm_of(self)
        with self._world.changed:
            while True:
                waiting.check_interrupt(self, what)
                self._world.check(self._member)
                if self.rank == 0:
                    self.heartbeat()  # while rank 0 waits for some, it is alive for the others
                start = looks.start()
                awaited = {rank: max(start, self._hub.seen[rank]) + limit for rank in missing()}
                if not awaited:
                    return
                silent = [rank for rank, end in awaited.items() if time.monotonic() > end]
                if silent:
                    raise startup.silence(self, what, self._named(silent), limit)
                if rhythm.is_due():
                    startup.say(startup.progress(self.size, self._named(awaited), rhythm.waited))
                seconds = min(min(awaited.values()) - time.monotonic(), rhythm.due - rhythm.waited, looks.longest / 2)
                self._world.changed.wait(max(0.0, seconds) + 1e-3)

    @property
    def _member(self) -> int:
        """This rank's number in the whole world, where rank 0 is the calling thread."""
        return self._hub.members[self.rank]

    def _named(self, ranks: Iterable[int]) -> list[tuple[int, str | None]]:
        """(rank in the whole world, host) of ranks of this group."""
        return [(self._hub.members[rank], self.host) for rank in ranks]

    def _enter(self, value: Any) -> None:
        """Arrive at the next collective and bring `value`."""
        with self._world.changed:
            self._number += 1
            self._hub.brought[self.rank] = value
            self._hub.entered[self.rank] = self._number
            self._world.changed.notify_all()

    def _leave(self) -> None:
        with self._world.changed:
            self._hub.left[self.rank] = self._number
            self._world.changed.notify_all()

    def _wait_entered(self, what: str, ranks: Sequence[int]) -> None:
        self.wait_for(what, lambda: [rank for rank in ranks if self._hub.entered[rank] < self._number])

    def _wait_left(self, what: str, ranks: Sequence[int]) -> None:
        self.wait_for(what, lambda: [rank for rank in ranks if self._hub.left[rank] < self._number])


def _concatenate(name: str, parts: Sequence[Any], whole: np.ndarray, lanes: Sequence[int]) -> None:
    assert whole.shape[0] == sum(lanes), f"field {name!r} has {whole.shape[0]} lanes, expected {sum(lanes)}"
    start = 0
    for part, num_lanes in zip(parts, lanes):
        if num_lanes:
            assert part[name].shape == (num_lanes, *whole.shape[1:]), f"field {name!r} has shape {part[name].shape}"
            whole[start : start + num_lanes] = part[name]
        start += num_lanes


def _join(threads: Sequence[threading.Thread], seconds: float) -> None:
    """Threads that are busy elsewhere are left behind: they are daemons."""
    end = time.monotonic() + seconds
    for thread in threads:
        if thread.is_alive():
            thread.join(max(0.0, end - time.monotonic()))
