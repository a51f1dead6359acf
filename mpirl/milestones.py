"""When a process reached what, counted from its own start: where the seconds of a start-up go."""

from __future__ import annotations

import os
import time
from pathlib import Path


class Milestones:
    """By milestone: seconds since this process started, and seconds of cores that it had used by then, all threads together.

    born: when the process started, seconds since the epoch, to 10 ms. A milestone that is reached again counts anew.
    """

    def __init__(self) -> None:
        self.born = time.time() - age()
        self.seconds: dict[str, float] = {}
        self.core_seconds: dict[str, float] = {}

    def reach(self, name: str) -> None:
        """This process has come so far."""
        self.seconds[name] = round(time.time() - self.born, 3)
        self.core_seconds[name] = round(time.process_time(), 3)

    def as_dict(self) -> dict[str, float | dict[str, float]]:
        """For logs and status.json; what is reached later shows in it too."""
        return {"born": round(self.born, 2), "seconds": self.seconds, "core_seconds": self.core_seconds}


def age() -> float:
    """Seconds since this process started; 0 where the system does not tell."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):  # no Linux
        return 0.0
