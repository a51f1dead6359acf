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

    @abstractmethod
    def act(
        self, observation: Mapping[str, np.ndarray], step_type: np.ndarray, core: np.ndarray, noise: np.ndarray | None
    ) -> Decision:
        """Decide for observations {field: [N, (k,) ...]}, step_type uint8 [N], core float32 [N, S].

        noise: float32 [N, noise_size], all the randomness there is; None acts greedily.
        """
