"""Progress of long work, on stderr: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time

WIDTH = 30
BAR_EVERY, LINE_EVERY = 0.1, 10.0  # seconds


class Progress:
    """How much of `total` is done. quiet: say nothing. live: draw a bar over itself; None where stderr is a terminal."""

    def __init__(self, total: int, unit: str, live: bool | None = None, quiet: bool = False):
        self._total, self._unit, self._quiet = max(total, 1), unit, quiet
        self._live = sys.stderr.isatty() if live is None else live
        self._done, self._start = 0, time.monotonic()
        self._due = self._start + (BAR_EVERY if self._live else LINE_EVERY)

    def add(self, number: int) -> None:
        self._done += number
        if time.monotonic() >= self._due:
            self._say()

    def close(self) -> None:
        """Take the bar away."""
        if self._live and not self._quiet:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _say(self) -> None:
        now = time.monotonic()
        self._due = now + (BAR_EVERY if self._live else LINE_EVERY)
        if self._quiet:
            return
        share = min(1.0, self._done / self._total)
        left = (now - self._start) * (1 / share - 1) if share else float("inf")
        text = f"{share:4.0%}  {self._done:,} of {self._total:,} {self._unit}, {left:,.0f} s left"
        if self._live:
            filled = round(WIDTH * share)
            print(f"\r\x1b[K[{'#' * filled}{' ' * (WIDTH - filled)}] {text}", end="", file=sys.stderr, flush=True)
        else:
            print(f"mpirl: {text.strip()}", file=sys.stderr, flush=True)
