"""When the first iteration ended: the last milestone of a start-up."""

from __future__ import annotations

from mpirl.milestones import Milestones
from mpirl.observers.base import Observer, Report


class FirstIteration(Observer):
    """Notes it once."""

    def __init__(self, milestones: Milestones):
        self._milestones: Milestones | None = milestones

    def observe(self, report: Report) -> None:
        if self._milestones:
            self._milestones.reach("first iteration")
            self._milestones = None
