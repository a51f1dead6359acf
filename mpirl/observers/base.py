"""The contract of an observer: it reads the report of every iteration and never communicates."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from mpirl.accounts import Accounts


@dataclass(frozen=True)
class Report:
    """One iteration, after it ended.

    seconds: by phase (broadcast, collect, gather, archive, learn, evaluate, save, other); "iteration" is their sum.
    elapsed: seconds of training over all restarts. fps: true steps per second since this start. stats: the algorithm's.
    episodes: rows of the episodes that ended now. mean_return, mean_length: over the last 100, None before the first.
    evaluation: mean_reward, std_reward, mean_ep_length, episodes, or None when there was none.
    """

    iteration: int
    steps: int
    total_steps: int
    version: int
    lag: int
    seconds: Mapping[str, float]
    elapsed: float
    fps: float
    stats: Mapping[str, float]
    episodes: list[dict[str, Any]]
    num_episodes: int
    mean_return: float | None
    mean_length: float | None
    accounts: Accounts
    evaluation: Mapping[str, float] | None

    @property
    def eta(self) -> float:
        """Seconds that the remaining steps take at the present speed."""
        return max(0, self.total_steps - self.steps) / max(self.fps, 1e-9)


@dataclass(frozen=True)
class Outcome:
    """How a run ended. state: "finished" (all steps done), "stopped" (saved, can resume) or "failed"."""

    state: str
    reason: str


class Observer(ABC):
    """Subclasses override what they need."""

    def observe(self, report: Report) -> None:
        """See an iteration."""

    def close(self, outcome: Outcome) -> None:
        """See the end. Called once, also after a failure."""


def tell(observers: Iterable[Observer], report: Report) -> None:
    """Let all observers see an iteration, in their order."""
    for observer in observers:
        observer.observe(report)


class Telling:
    """Tells observers of an iteration only when the workers play the next one: then the learner waits anyway.

    As a context, it tells at its end what it has not told, also where that is a failure.
    """

    def __init__(self, observers: Iterable[Observer]):
        self._observers = tuple(observers)
        self._report: Report | None = None

    def later(self, report: Report) -> None:
        """Keep a report for the next `now`, which is at once for the one before."""
        self.now()
        self._report = report

    def now(self) -> None:
        report, self._report = self._report, None
        if report:
            tell(self._observers, report)

    def __enter__(self) -> Telling:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        with suppress(Exception) if kind else nullcontext():  # the failure that is on its way is the one to tell of
            self.now()
