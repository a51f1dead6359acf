"""Where the seconds of an iteration go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from mpirl.transport.base import Stopwatch


class IterationTimes(Stopwatch):
    """Seconds by phase since the last `close`; the phases sum to the iteration exactly."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._only: str | None = None

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        name = self._only or name
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now

    @contextmanager
    def counted_as(self, name: str) -> Iterator[None]:
        """Whatever laps inside belongs to `name`."""
        self.lap("other")
        self._only = name
        try:
            yield
            self.lap(name)
        finally:
            self._only = None

    def close(self) -> dict[str, float]:
        """End the iteration: seconds by phase; "iteration" is their sum."""
        self.lap("other")
        seconds, self._seconds = self._seconds, {}
        for name in ("broadcast", "collect", "gather", "learn", "archive"):
            seconds.setdefault(name, 0.0)
        seconds["iteration"] = self._last - self._start
        self._start = self._last
        return seconds
