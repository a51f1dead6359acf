"""Rank 0's log: a line for every iteration, with the accounts."""

from __future__ import annotations

from collections.abc import Callable

from mpirl.observers.base import Observer, Outcome, Report


class Log(Observer):
    """Hands its lines to `say`."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say

    def observe(self, report: Report) -> None:
        seconds = ", ".join(f"{phase} {value:.3f}" for phase, value in report.seconds.items())
        self._say(f"iteration {report.iteration} version {report.version}: {report.accounts}; seconds: {seconds}")

    def close(self, outcome: Outcome) -> None:
        self._say(f"{outcome.state}: {outcome.reason}")
