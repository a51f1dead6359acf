"""When things are due: rank 0 decides run, evaluate, save and stop, and everyone obeys."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from types import FrameType
from typing import Protocol

import numpy as np

from mpirl.transport.base import Group


@dataclass(frozen=True)
class Command:
    """One iteration's decisions. `version` is that of the weights collected with; `lag` is how far the learner was ahead."""

    iteration: int
    version: int
    lag: int = 0
    evaluate: bool = False
    save: bool = False
    stop: bool = False

    def encode(self) -> np.ndarray:
        return np.array(astuple(self), np.int64)

    @classmethod
    def decode(cls, wire: np.ndarray) -> Command:
        iteration, version, lag, evaluate, save, stop = (int(number) for number in wire)
        return cls(iteration, version, lag, bool(evaluate), bool(save), bool(stop))


class Counters(Protocol):
    """What the schedule reads off the learner. behind: batches taken and not learned from yet."""

    iteration: int
    version: int
    steps: int
    behind: int


class Schedule:
    """Due dates of a run. Intervals are in iterations (0: never), `max_time` in seconds (None: no limit).

    lag: 1 if the learner learns from a batch while the next one is collected, 0 if before.
    """

    def __init__(
        self,
        total_steps: int,
        evaluate_every: int = 0,
        save_every: int = 0,
        max_time: float | None = None,
        lag: int = 0,
    ):
        self.total_steps = total_steps
        self.evaluate_every = evaluate_every
        self.save_every = save_every
        self.max_time = max_time
        self.lag = lag
        self.started = time.monotonic()
        self.stop_reason: str | None = None

    def commands(self, group: Group, learner: Counters | None) -> Iterator[Command]:
        """* The commands of the run, one per iteration, the same on all ranks; `learner` on rank 0 only."""
        wire = Command(0, 0).encode()
        while True:
            if learner:
                wire[:] = self.decide(learner).encode()
            group.broadcast(wire)
            group.stopwatch.lap("other")
            command = Command.decode(wire)
            if command.stop:
                return
            yield command

    def decide(self, learner: Counters) -> Command:
        """The next command."""
        iteration = learner.iteration + 1
        if learner.steps >= self.total_steps:
            self.request_stop("total_steps reached")
        if self.max_time is not None and time.monotonic() - self.started >= self.max_time:
            self.request_stop(f"max_time of {self.max_time:g} s reached")
        due = lambda every: bool(every) and iteration % every == 0
        return Command(
            iteration,
            learner.version,
            lag=learner.behind,
            evaluate=due(self.evaluate_every),
            save=due(self.save_every),
            stop=self.stop_reason is not None,
        )

    def request_stop(self, reason: str) -> None:
        """Stop before the next iteration; the first reason stands."""
        self.stop_reason = self.stop_reason or reason

    @property
    def finished(self) -> bool:
        """Whether the run did all its steps, as opposed to being stopped."""
        return self.stop_reason == "total_steps reached"


class Signals:
    """While entered, USR1, TERM and INT ask the schedule to stop after the iteration; a second INT interrupts at once.

    USR1 is held back until then by `environment`. With schedule None (workers) they are ignored: rank 0 ends the run for all.
    Python allows this in main threads only.
    """

    NUMBERS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)

    def __init__(self, schedule: Schedule | None):
        self.schedule = schedule

    def __enter__(self) -> Signals:
        handler = self._stop if self.schedule else signal.SIG_IGN
        self._before = {number: signal.signal(number, handler) for number in self.NUMBERS}
        self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, self.NUMBERS)  # what came before now is handled now
        return self

    def __exit__(self, *exception: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        assert self.schedule is not None
        if number == signal.SIGINT and self.schedule.stop_reason:
            raise KeyboardInterrupt
        self.schedule.request_stop(f"signal {signal.Signals(number).name}")
