"""The contract of an algorithm: learn from a batch, and say what it needs in one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from mpirl.specs import ArraySpec, Specs


@dataclass
class Batch:
    """A batch as torch tensors on the learner's device: N lanes, T steps.

    fields: every field of the table, [N, ...]. `progress` runs from 0 to 1 over the run's total steps; annealing follows it.
    `random` is a numpy generator that depends on (run seed, iteration) alone.
    `observe(index)` gives model inputs {field: [B, (k,) ...]} for flat positions index = lane * (T + 1) + t, int64 [B]
    (t in 0 .. T), stacking frames where the model wants them. `autocast()` is the precision context for forward passes.
    `chosen`, bool [N, T], are the steps to learn from; None: all. `lag` is how many updates the present weights are ahead of
    those that collected it. `resident`: batches for which it is the same are in the same memory, also what `observe` reads;
    None: they are in main memory, or that is not known.
    """

    fields: Mapping[str, Tensor]
    progress: float
    random: np.random.Generator
    observe: Callable[[Tensor], dict[str, Tensor]]
    autocast: Callable[[], Any]
    chosen: Tensor | None = None
    lag: int = 0
    resident: Hashable = None

    @property
    def is_step(self) -> Tensor:
        """[N, T] bool: False on the seam after LAST, where nothing was decided, and for steps that are not chosen."""
        is_step = self.fields["step_type"][:, :-1] != 2
        return is_step if self.chosen is None else is_step & self.chosen

    @property
    def num_lanes(self) -> int:
        return self.fields["step_type"].shape[0]

    @property
    def num_steps(self) -> int:
        """T."""
        return self.fields["reward"].shape[1]


class Algorithm(ABC):
    """Subclasses take (model, specs, **settings). They own the optimizer.

    `replay_size` is how many of the latest observations `refill` wants to see when a run goes on (0: none).
    """

    replay_size: int = 0

    @staticmethod
    def model_node(model: Mapping[str, Any], settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """The config node of the model that all ranks use, from the configured one; `settings` are the algorithm's own."""
        return model

    @staticmethod
    def extras(specs: Specs) -> dict[str, ArraySpec]:
        """Per-observation arrays that the policy must record, by name: any of {"value", "parameters"}."""
        return {}

    @abstractmethod
    def learn(self, batch: Batch) -> dict[str, float]:
        """Update the model in place from one batch; return statistics by name.

        "learned" is required: the number of true steps of the batch that were learned from. The others become
        TensorBoard's train/<name>.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Optimizer state and counters; tensors and plain values only, so that weights_only=True can load it."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""

    def refill(self, batches: Iterable[Batch]) -> None:
        """Take in again, without learning, what `state_dict` is too small for: the latest batches, oldest first.

        Called after `load_state_dict` when a run goes on, if `replay_size` asks for any; there may be fewer than it asks.
        """


class OfflineAlgorithm(Algorithm):
    """An algorithm that learns from archives; `learns_online`: from its own play as well.

    The fields of an archive's batch are those of the table and, each [N, T+1]: `row` int64, where the observation's
    episode stands in the episode table (-1: it was not finished); `return_to_go` float32, the sum of the rewards from
    there to the episode's end, each clipped to reward_clip, discounted by gamma per step, nan if it was not finished;
    `steps_to_go` int32, the steps until then.
    """

    learns_online: bool = False
    gamma: float = 1.0
    reward_clip: float | None = None
    left_out: str = "not chosen by the algorithm"
    """Why `choose` chooses no other episodes, for the accounts."""

    def choose(self, episodes: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Which finished episodes to learn from, bool [E]; None: from all, and from those that were not finished.

        episodes: columns [E] of the episode table, `return` (of raw rewards), `length`, `task` and others. Called once.
        """
        return None

    @abstractmethod
    def validate(self, batch: Batch) -> dict[str, float]:
        """Losses on a batch's chosen steps, by name, without learning from them; {} if there are none."""
