"""What the threads of a thread world share: what they bring to their meetings, and the fate of their world."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from typing import Any

from mpirl.errors import RankFailed


class Aborted(BaseException):
    """Unwinds the threads of a world that has ended. Not an Exception, so that nobody takes it for a failure."""


class Hub:
    """What the ranks of one group share. `members` are their numbers in the whole world."""

    def __init__(self, members: Sequence[int]):
        self.members = list(members)
        self.entered = [0] * len(self.members)  # how many collectives each rank has come to
        self.left = [0] * len(self.members)  # and how many it has finished
        self.seen = [0.0] * len(self.members)  # last signs of life, time.monotonic()
        self.brought: list[Any] = [None] * len(self.members)
        self.parts: dict[tuple[int, int], Hub] = {}


class World:
    """The fate of the world: who has finished, who failed, and whether it has ended."""

    def __init__(self, size: int):
        self.changed = threading.Condition()
        self.finished = [False] * size
        self._failure: tuple[int, str] | None = None
        self._exit_code: int | None = None
        self._ended = False

    def check(self, member: int) -> None:
        """Raise, in a rank that waits, what the others have come to."""
        if member and (self._ended or self._failure or self._exit_code is not None):
            raise Aborted
        if self._exit_code is not None:
            raise SystemExit(self._exit_code)
        if self._failure:
            raise RankFailed(self._failure[0], socket.gethostname(), self._failure[1])

    def record_failure(self, member: int, report: str) -> None:
        with self.changed:
            self._failure = self._failure or (member, report)
            self.changed.notify_all()

    def record_exit(self, code: int) -> None:
        with self.changed:
            self._exit_code = code if self._exit_code is None else self._exit_code
            self.changed.notify_all()

    def finish(self, member: int) -> None:
        with self.changed:
            self.finished[member] = True
            self.changed.notify_all()

    def end(self) -> None:
        with self.changed:
            self._ended = True
            self.changed.notify_all()

    def wait_ended(self, seconds: float) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: self._ended, seconds)
