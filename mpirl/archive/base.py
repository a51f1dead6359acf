"""The contract of an archive writer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from mpirl.trajectory import Trajectory


class ArchiveWriter(ABC):
    """Takes every batch. A write returns when the batch may be overwritten; it may be on disk only after `flush`."""

    @abstractmethod
    def write(self, iteration: int, version: int, batch: Trajectory, episodes: list[Mapping[str, Any]]) -> str:
        """Take a batch of iteration `iteration`, learned on top of learner version `version`.

        episodes: those that ended in this batch, as rows of the episode table. Returns why the iteration is not kept, by
        a rule of the user's, and "" if it is.
        """

    @abstractmethod
    def flush(self) -> int:
        """Close the open segment so that everything written so far is on disk; return true steps archived so far."""

    def held(self) -> AbstractContextManager[None]:
        """While entered, the writer's threads leave the locks that a fork waits for within milliseconds."""
        return nullcontext()

    def finish_after_fork(self) -> None:
        """In a child forked by any thread, once the process that forked it has been killed: bring to disk what was taken.

        May come at any moment of the writer's other threads, which do not exist in the child; nothing else is called there.
        By default, what was not on disk is lost.
        """

    @abstractmethod
    def close(self) -> None:
        """Flush and stop. Safe to call twice."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """True steps taken over and kept so far, seams not counted."""

    @property
    def deleted(self) -> Mapping[str, int]:
        """True steps that were written, and deleted since by a rule of the user's, by reason; also before this writer began."""
        return {}
