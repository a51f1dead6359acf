"""status.json: the run's state for machines, replaced atomically."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpirl.observers.base import Observer, Outcome, Report

FORMAT = 1


class Status(Observer):
    """Keeps `path` at most `interval` seconds behind the run. header: facts that stay (hosts, process ids, ...)."""

    def __init__(self, path: Path, header: Mapping[str, Any], interval: float = 1.0):
        self._path, self._interval = path, interval
        self._content: dict[str, Any] = {"format": FORMAT, **header, "state": "running", "started": time.time()}
        self._written = 0.0
        self._write()

    def observe(self, report: Report) -> None:
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

    def _write(self) -> None:
        self._content["updated"] = time.time()
        replace_file(self._path, json.dumps(self._content, indent=2) + "\n")
        self._written = time.monotonic()


def replace_file(path: Path, text: str) -> None:
    """Write `text` so that readers see the old or the new file, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
