"""The contracts of emulators: a single one (`Emulator`), and a natively batched one (`EmulatorBatch`).

Episodes follow each other by next-step autoreset: after an observation of type LAST, the next step ignores the
action, starts a new episode and returns its FIRST observation with reward 0 and discount 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mpirl.specs import Specs


class Transition(NamedTuple):
    """What one step of a single emulator returns.

    observation: an array or a (nested) dict of arrays, as in the specs. reward: raw, a float.
    terminated: the episode ended for good. truncated: it was cut off. extras: arrays by name, as in `specs.extras`.
    """

    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    extras: Mapping[str, Any] = {}


class Emulator(ABC):
    """A single emulator; the usual thing to write. `lanes.EmulatorLanes` makes a batch of them."""

    specs: Specs
    reseed_every: int = 1
    """Every how many episodes a lane is seeded; more than 1 where seeding is dear."""
    render_settings: Mapping[str, Any] = {}
    """Settings with which it makes pictures, its game unchanged."""
    steps_per_second: float | None = None
    """As fast as people watch or play it."""

    @abstractmethod
    def reset(self, seed: int | None) -> Any:
        """Start an episode and return its first observation.

        From a reset with a seed on, everything is a function of the seed and the actions, in any process and after any
        history. With None the emulator goes on with the random numbers of the last seed. Extras of the first
        observation, if declared, are returned by `first_extras`.
        """

    @abstractmethod
    def step(self, action: np.ndarray) -> Transition:
        """Play one action (shape and dtype of `specs.action`; continuous actions may exceed the bounds: clip them)."""

    def first_extras(self) -> Mapping[str, Any]:
        """Extras that belong to the observation that `reset` returned."""
        return {}

    def render(self) -> np.ndarray | None:
        """The present picture, uint8 [height, width, 3], or None."""
        return None

    def close(self) -> None:
        """Release what the emulator holds. Called once."""


@dataclass
class Frame:
    """One moment of N lanes, written by an EmulatorBatch. The arrays may be strided views into a trajectory.

    observation: {field: [N, ...]}; step_type uint8 [N]; reward, discount float32 [N]; extras {name: [N, ...]}.
    """

    observation: dict[str, np.ndarray]
    step_type: np.ndarray
    reward: np.ndarray
    discount: np.ndarray
    extras: dict[str, np.ndarray]

    @classmethod
    def allocate(cls, specs: Specs, num_lanes: int) -> Frame:
        """A frame with arrays of its own."""

        def arrays(table: Mapping[str, Any]) -> dict[str, np.ndarray]:
            return {name: np.zeros((num_lanes, *spec.shape), spec.dtype) for name, spec in table.items()}

        zeros = lambda dtype: np.zeros(num_lanes, dtype)
        return cls(arrays(specs.observation), zeros(np.uint8), zeros(np.float32), zeros(np.float32), arrays(specs.extras))


class EmulatorBatch(ABC):
    """N lanes stepped together. One per worker."""

    specs: Specs
    num_lanes: int
    reseed_every: int = 1

    @abstractmethod
    def reset(self, seed: np.ndarray, out: Frame) -> None:
        """Start an episode in every lane with seed int64 [N] and write the FIRST frame (reward 0, discount 1)."""

    @abstractmethod
    def step(self, action: np.ndarray, seed: np.ndarray, out: Frame) -> None:
        """Step every lane and write the next frame.

        action: [N, ...] as in the specs. seed: int64 [N], looked at only for lanes that ended (their last frame was
        LAST): they ignore the action and start a new episode, seeded unless the seed is NO_SEED.
        """

    def render(self, lane: int) -> np.ndarray | None:
        """The lane's present picture, uint8 [height, width, 3], or None."""
        return None

    def close(self) -> None:
        """Release what the lanes hold. Called once."""
