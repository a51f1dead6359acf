"""status.json: the run's state for machines, replaced atomically."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpirl.files import write_json
from mpirl.observers.base import Observer, Outcome, Report

FORMAT = 1
WARM_UP = 2  # iterations after the start that `medians` leaves out
WINDOW = 100  # latest iterations that it is taken over


class Status(Observer):
    """Keeps `path` at most `interval` seconds behind the run. header: facts that stay (hosts, process ids, ...)."""

    def __init__(self, path: Path, header: Mapping[str, Any], interval: float = 1.0):
        self._path, self._interval = path, interval
        self._content: dict[str, Any] = {"format": FORMAT, **header, "state": "running", "started": time.time()}
        self._recent: deque[dict[str, float]] = deque(maxlen=WINDOW)  # seconds by phase, and the iteration's steps
        self._seen, self._steps = 0, 0
        self._written = 0.0
        self._write()

    def observe(self, report: Report) -> None:
        self._remember(report)
        self._content |= {
            "iteration": report.iteration,
            "steps": report.steps,
            "total_steps": report.total_steps,
            "version": report.version,
            "lag": report.lag,
            "fps": report.fps,
            "mean_return": report.mean_return,
            "mean_length": report.mean_length,
            "episodes": report.num_episodes,
            "elapsed": report.elapsed,
            "eta": report.eta,
            "seconds": dict(report.seconds),
            "accounts": report.accounts.state_dict(),
        }
        if report.evaluation:
            self._content["evaluation"] = {**report.evaluation, "steps": report.steps}
        if time.monotonic() - self._written >= self._interval:
            self._write()

    def close(self, outcome: Outcome) -> None:
        self._content |= {"state": outcome.state, "reason": outcome.reason, "ended": time.time()}
        self._write()

    def _remember(self, report: Report) -> None:
        self._seen += 1
        if self._seen > WARM_UP:
            self._recent.append({**report.seconds, "steps": report.steps - self._steps})
        self._steps = report.steps

    def _write(self) -> None:
        found = medians(self._recent)
        if found:
            self._content |= {"steps_per_iteration": found.pop("steps"), "medians": found, "measured": len(self._recent)}
        self._content["updated"] = time.time()
        write_json(self._path, self._content)
        self._written = time.monotonic()


def medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of every key; a row without it counts as 0 (phases such as evaluate are not in every iteration)."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: statistics.median(row.get(key, 0.0) for row in rows) for key in keys}
