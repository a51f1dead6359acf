"""One line per iteration, and a summary at the end."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import TextIO

from mpirl.observers.base import Observer, Outcome, Report


class Console(Observer):
    """Prints to `stream`. `every`: one line per so many iterations."""

    def __init__(self, stream: TextIO | None = None, every: int = 1):
        self._stream, self._every = stream or sys.stdout, every
        self._last: Report | None = None

    def observe(self, report: Report) -> None:
        self._last = report
        if report.iteration % self._every == 0 or report.evaluation:
            print(line(report), file=self._stream, flush=True)

    def close(self, outcome: Outcome) -> None:
        print(summary(self._last, outcome), file=self._stream, flush=True)


def line(report: Report) -> str:
    """The iteration in one line."""
    parts = [
        f"iteration {report.iteration}",
        f"steps {report.steps:,}/{report.total_steps:,}",
        f"{report.fps:,.0f} steps/s",
        *(offline(report) if "epoch" in report.stats else online(report)),
        f"ETA {clock(report.eta)}",
    ]
    if report.evaluation:
        parts.insert(4, f"evaluation {number(report.evaluation['mean_reward'])}")
    if report.accounts.dropped:
        parts.append(f"dropped {sum(report.accounts.dropped.values()):,}")
    return " | ".join(parts)


def online(report: Report) -> list[str]:
    seconds = report.seconds
    return [f"return {number(report.mean_return)}", f"collect {seconds['collect']:.2f} s, learn {seconds['learn']:.2f} s"]


def offline(report: Report) -> list[str]:
    """How well the recorded actions are predicted, those learned from and those held out."""
    stats = report.stats
    loss = [number(stats.get(f"{prefix}negative_log_likelihood")) for prefix in ("", "valid/")]
    return [f"epoch {stats['epoch']:.2f}", f"negative log-likelihood {loss[0]}, validation {loss[1]}"]


def summary(report: Report | None, outcome: Outcome) -> str:
    """The run in a few lines."""
    head = f"{outcome.state}: {outcome.reason.splitlines()[0] if outcome.reason else '-'}"
    if report is None:
        return head
    return "\n".join(
        [
            head,
            f"  iterations {report.iteration:,}, episodes {report.num_episodes:,}, "
            f"time {clock(report.elapsed)}, {report.fps:,.0f} steps/s",
            f"  mean return of the last 100 episodes {number(report.mean_return)}, mean length {number(report.mean_length)}",
            f"  steps: {report.accounts}",
        ]
    )


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))) if seconds < 1e9 else "-"
