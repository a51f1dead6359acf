"""The contract of a policy: observations of a worker's lanes to actions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Decision(NamedTuple):
    """action [N, ...] as in the specs; log_prob float32 [N]; core float32 [N, S]; extras {name: [N, ...]}."""

    action: np.ndarray
    log_prob: np.ndarray
    core: np.ndarray
    extras: Mapping[str, np.ndarray]


class Policy(ABC):
    """Chooses the actions of N lanes."""

    def refresh(self) -> None:
        """The weights have changed; called before every collection."""

    @abstractmethod
    def act(
        self, observation: Mapping[str, np.ndarray], step_type: np.ndarray, core: np.ndarray, noise: np.ndarray | None
    ) -> Decision:
        """Decide for observations {field: [N, (k,) ...]}, step_type uint8 [N], core float32 [N, S].

        noise: float32 [N, noise_size], all the randomness there is; None acts greedily.
        """

    def ask(
        self, observation: Mapping[str, np.ndarray], step_type: np.ndarray, core: np.ndarray, noise: np.ndarray | None
    ) -> None:
        """Begin to decide, as `act` does; what is given stays as it is until `answer`."""
        self._asked = observation, step_type, core, noise

    def answer(self) -> Decision:
        """The decision that was asked for."""
        return self.act(*self._asked)
