"""The contract of an archive writer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from mpirl.trajectory import Trajectory


class ArchiveWriter(ABC):
    """Takes every batch. A write returns when the batch may be overwritten; it may be on disk only after `flush`."""

    @abstractmethod
    def write(self, iteration: int, version: int, batch: Trajectory, episodes: list[Mapping[str, Any]]) -> None:
        """Take a batch of iteration `iteration`, learned on top of learner version `version`.

        episodes: those that ended in this batch, as rows of the episode table.
        """

    @abstractmethod
    def flush(self) -> int:
        """Close the open segment so that everything written so far is on disk; return true steps archived so far."""

    @abstractmethod
    def close(self) -> None:
        """Flush and stop. Safe to call twice."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """True steps taken over so far, seams not counted."""
