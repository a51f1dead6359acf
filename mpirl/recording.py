"""A recording: what an emulator plays in one iteration of one lane, in arrays like the archive's, and how they compare."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from mpirl.archive.reader import Segment
from mpirl.emulators.base import Frame
from mpirl.specs import StepType
from mpirl.trajectory import Layout


Reason = tuple[str, str, str]  # why two differ: a field, and its values in the archive and now, in words
SLOTS = ("reward", "discount")  # fields that belong to the observation after


class Recording:
    """Arrays [1, ...] of the fields that an emulator fills. `frames[t]` is where observation t goes, and what came with it.

    age: int64 [T+1], observations since the episode's FIRST.
    """

    def __init__(self, layout: Layout):
        self.steps, self.context = layout.steps, layout.context
        self._observation, self._extras = tuple(layout.specs.observation), tuple(layout.specs.extras)
        table = layout.table()
        names = ("step_type", *self._observation, "reward", "discount", *self._extras)
        self.arrays = {name: np.zeros((1, *table[name].shape), table[name].dtype) for name in names}
        self.age = np.zeros(self.steps + 1, np.int64)
        self.frames = [self._frame(t) for t in range(self.steps + 1)]

    def begin(self, t: int) -> None:
        """Observation t will be the first; there is no context before it."""
        for name in self._observation:
            self.arrays[name][:, : self.context] = 0
        self.age[t] = 0

    def carry_over(self) -> None:
        """Observation T becomes observation 0 of the next iteration, with its context of frames of the same episode."""
        for name in self._observation:
            array = self.arrays[name]
            array[:, : self.context + 1] = array[:, self.steps :].copy()
            array[:, : max(0, self.context - self.age[-1])] = 0
        for name in ("step_type", *self._extras):
            self.arrays[name][:, 0] = self.arrays[name][:, -1]
        self.age[0] = self.age[-1]

    def grow_older(self, start: int, stop: int) -> None:
        """Observations start + 1 .. stop have been played: set their ages."""
        now = np.arange(start, stop + 1)
        is_first = self.arrays["step_type"][0, start : stop + 1] == StepType.FIRST
        self.age[start : stop + 1] = now - np.maximum.accumulate(np.where(is_first, now, start - self.age[start]))

    def times(self, name: str, start: int, stop: int) -> tuple[int, np.ndarray]:
        """What of a field belongs to observations start .. stop: its first index, and the observation of each index from there.

        Rewards belong to the observation that they lead to, context to observation 0.
        """
        if name in SLOTS:
            return start, np.arange(start + 1, stop + 1)
        if name not in self._observation:
            return start, np.arange(start, stop + 1)
        first = 0 if start == 0 else self.context + start
        return first, np.maximum(np.arange(first, self.context + stop + 1) - self.context, start)

    def time_axis(self, name: str, index: int) -> int:
        """An index of a field as t; context has negative ones."""
        return index - self.context if name in self._observation else index

    def _frame(self, t: int) -> Frame:
        before = max(t - 1, 0)
        return Frame(
            observation={name: self.arrays[name][:, self.context + t] for name in self._observation},
            step_type=self.arrays["step_type"][:, t],
            reward=self.arrays["reward"][:, before],
            discount=self.arrays["discount"][:, before],
            extras={name: self.arrays[name][:, t] for name in self._extras},
        )


class EpisodeTable:
    """The rows of one lane's episodes in the segment that was asked for last."""

    def __init__(self, lane: int):
        self._lane = lane
        self._path: Path | None = None
        self._rows: dict[int, tuple[int, float, str]] = {}

    def difference(self, segment: Segment, id: int, played: tuple[int, float, str]) -> Reason | None:
        """The first of length, return and reason that the table has otherwise. A row that is not there is no difference."""
        if segment.path != self._path:
            mine = segment.column("lane") == self._lane
            columns = [segment.column(name)[mine].tolist() for name in ("id", "length", "return", "reason")]
            self._path, self._rows = segment.path, {id: row for id, *row in zip(*columns)}
        for name, stored, value in zip(("length", "return", "reason"), self._rows.get(id, played), played):
            is_equal = math.isclose(stored, value, rel_tol=1e-9, abs_tol=1e-9) if name == "return" else stored == value
            if not is_equal:
                return f"episodes/{name}", str(stored), str(value)
        return None


def differing(stored: np.ndarray, played: np.ndarray) -> np.ndarray:
    """Whether the bits of stored[i] and played[i] differ, bool [len]; NaN equals NaN."""
    return _differing(stored, played).reshape(len(stored), -1).any(axis=1) if len(stored) else np.zeros(0, bool)


def described(name: str, stored: np.ndarray, played: np.ndarray) -> tuple[str, str]:
    """Two arrays that differ in words; of large ones, the first value that differs."""
    if name == "step_type":
        return _type_name(stored), _type_name(played)
    if not stored.ndim:
        return str(stored), str(played)
    places = np.argwhere(_differing(stored, played))
    first = tuple(places[0].tolist())
    return f"{stored[first]} at {list(first)}", f"{played[first]} ({len(places):,} of {stored.size:,} values differ)"


def _differing(stored: np.ndarray, played: np.ndarray) -> np.ndarray:
    if stored.dtype.kind != "f":
        return stored != played
    bits = f"u{stored.itemsize}"
    differ = np.ascontiguousarray(stored).view(bits) != np.ascontiguousarray(played).view(bits)
    return (differ & ~(np.isnan(stored) & np.isnan(played))).reshape(stored.shape)


def _type_name(value: Any) -> str:
    return StepType(value).name if value in set(StepType) else str(value)
