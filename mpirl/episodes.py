"""Episodes as they pass through the batches: returns, lengths, and who played them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpirl.specs import StepType
from mpirl.trajectory import NO_SEED

WINDOW = 100
"""Training episodes that the mean return is taken over, as in Stable-Baselines3."""


class EpisodeTracker:
    """Follows every lane over the batches of a run and reports the episodes that end.

    lane_rank: the rank that plays each of the N lanes.
    """

    def __init__(self, lane_rank: Sequence[int]):
        num_lanes = len(lane_rank)
        self.lane_rank = list(lane_rank)
        self.recent: deque[tuple[float, int]] = deque(maxlen=WINDOW)
        self.finished = 0
        self.last_id = np.full(num_lanes, -1, np.int64)
        self._return = np.zeros(num_lanes)
        self._length = np.zeros(num_lanes, np.int64)
        self._seed = np.full(num_lanes, NO_SEED, np.int64)
        self._start = np.full((num_lanes, 2), -1, np.int64)  # iteration and step of the first observation
        self._first_version = np.full(num_lanes, -1, np.int64)  # of the weights that played the first step

    def update(self, iteration: int, batch: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Take a batch in; rows of the episodes that ended in it, lane by lane."""
        rows: list[dict[str, Any]] = []
        step_type = batch["step_type"]  # [N, T+1]
        for lane in range(len(step_type)):
            start = 0  # first step of the piece that is being summed
            marks = np.flatnonzero(step_type[lane] != StepType.MID)
            for t in marks:
                if step_type[lane, t] == StepType.FIRST:
                    if t == 0 and self.last_id[lane] == batch["episode"][lane, 0]:
                        continue  # o_0 is the o_T of the batch before, already seen
                    self._begin(lane, iteration, t, batch)
                    start = t
                elif t > 0:
                    self._add(lane, batch["reward"][lane, start:t], batch["version"][lane])
                    rows.append(self._end(lane, iteration, t, batch))
                    start = t + 1
            if step_type[lane, -1] != StepType.LAST:
                self._add(lane, batch["reward"][lane, start:], batch["version"][lane])
        self.recent.extend((row["return"], row["length"]) for row in rows)
        self.finished += len(rows)
        return rows

    def _begin(self, lane: int, iteration: int, t: int, batch: Mapping[str, np.ndarray]) -> None:
        self._return[lane] = self._length[lane] = 0
        self._first_version[lane] = -1
        self._seed[lane] = batch["seed"][lane, t]
        self._start[lane] = iteration, t
        self.last_id[lane] = batch["episode"][lane, t]

    def _add(self, lane: int, rewards: np.ndarray, version: int) -> None:
        if len(rewards) and not self._length[lane]:
            self._first_version[lane] = version
        self._return[lane] += rewards.sum(dtype=np.float64)
        self._length[lane] += len(rewards)

    def _end(self, lane: int, iteration: int, t: int, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {
            "id": int(batch["episode"][lane, t]),
            "lane": lane,
            "rank": self.lane_rank[lane],
            "seed": int(self._seed[lane]),
            "return": float(self._return[lane]),
            "length": int(self._length[lane]),
            "reason": "terminated" if batch["discount"][lane, t - 1] == 0 else "truncated",
            "start_iteration": int(self._start[lane, 0]),
            "start_step": int(self._start[lane, 1]),
            "end_iteration": iteration,
            "end_step": int(t),
            "first_version": int(self._first_version[lane]),
            "last_version": int(batch["version"][lane]),
        }

    @property
    def mean_return(self) -> float | None:
        """Mean over the last WINDOW episodes, None before the first."""
        return float(np.mean([value for value, _ in self.recent])) if self.recent else None

    @property
    def mean_length(self) -> float | None:
        return float(np.mean([length for _, length in self.recent])) if self.recent else None

    def state_dict(self) -> dict[str, Any]:
        """What outlives a restart; the episodes under way do not, their lanes start anew."""
        return {"recent": [list(pair) for pair in self.recent], "finished": self.finished, "last_id": self.last_id.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.recent.extend((value, length) for value, length in state["recent"])
        self.finished = state["finished"]
        lanes = len(self.last_id)
        # As if each lane had just ended the episode before its first one, so that ids are never used twice.
        self.last_id = np.maximum(np.arange(lanes) + (first_episodes(state["last_id"], lanes) - 1) * lanes, -1)


def first_episodes(last_id: Sequence[int], num_lanes: int) -> np.ndarray:
    """The index k of the first episode of every lane, int64 [num_lanes]; its id is lane + k * num_lanes.

    last_id: ids that the lanes reached before a restart (-1: none). With another number of lanes than before, every
    lane goes on above all ids in use.
    """
    last = np.asarray(last_id, np.int64)
    if len(last) == num_lanes:
        return np.where(last < 0, 0, last // max(num_lanes, 1) + 1)
    return np.full(num_lanes, last.max(initial=-1) // max(num_lanes, 1) + 1, np.int64)
