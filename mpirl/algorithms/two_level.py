"""The task level of DigiRL's filtering (Bai et al. 2024): which episodes did better than was to be expected of their task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


class TaskFilter:
    """Keeps every episode's task advantage: its return minus the value of its first observation, as last seen.

    Both belong to the task where the first observation shows it. Where only the archive names it, the mean of the task's
    advantages is subtracted, so that a hard task's best episodes are not passed over for an easy task's.
    An episode whose first observation has not been seen is not chosen.
    """

    def __init__(self, top: float):
        self.top = top
        self.advantage = np.zeros(0, np.float32)  # [E], nan: not seen yet
        self.task = np.zeros(0, np.int64)

    def begin(self, episodes: Mapping[str, np.ndarray]) -> np.ndarray:
        """Take the episode table; bool [E], all of it: the choice is made as values are learned."""
        self.task = np.unique(episodes["task"], return_inverse=True)[1].reshape(-1)
        self.advantage = np.full(len(self.task), np.nan, np.float32)
        return np.ones(len(self.task), bool)

    def update(self, row: np.ndarray, advantage: np.ndarray) -> None:
        """Task advantages [K] of the episodes in these rows of the table."""
        self.advantage[row] = advantage

    def chosen(self) -> np.ndarray:
        """The top share of the episodes seen, bool [E]."""
        seen = ~np.isnan(self.advantage)
        if not seen.any():
            return seen
        count = np.bincount(self.task[seen])
        mean = np.bincount(self.task[seen], self.advantage[seen]) / np.maximum(count, 1)
        advantage = self.advantage[seen] - mean[self.task[seen]]
        seen[seen] = advantage >= np.quantile(advantage, 1 - self.top, method="higher")
        return seen

    def state_dict(self) -> dict[str, Any]:
        return {"advantage": torch.from_numpy(self.advantage.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """An archive that has changed since is judged anew."""
        if len(state["advantage"]) == len(self.advantage):
            self.advantage = state["advantage"].numpy().copy()
