"""The contract of an algorithm: learn from a batch, and say what it needs in one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpirl.models.base import Model
from mpirl.specs import ArraySpec, Specs


@dataclass
class Batch:
    """A batch as torch tensors on the learner's device: N lanes, T steps.

    fields: every field of the table, [N, ...]. `progress` runs from 0 to 1 over the run's total steps; annealing follows it.
    `random` is a numpy generator that depends on (run seed, iteration) alone.
    `observe(index)` gives model inputs {field: [B, (k,) ...]} for flat positions index = lane * (T + 1) + t, int64 [B]
    (t in 0 .. T), stacking frames where the model wants them. `autocast()` is the precision context for forward passes.
    """

    fields: Mapping[str, Tensor]
    progress: float
    random: np.random.Generator
    observe: Callable[[Tensor], dict[str, Tensor]]
    autocast: Callable[[], Any]

    @property
    def is_step(self) -> Tensor:
        """[N, T] bool: False on the seam after LAST, where nothing was decided."""
        return self.fields["step_type"][:, :-1] != 2

    @property
    def num_lanes(self) -> int:
        return self.fields["step_type"].shape[0]

    @property
    def num_steps(self) -> int:
        """T."""
        return self.fields["reward"].shape[1]


class Algorithm(ABC):
    """Subclasses take (model, specs, **settings). They own the optimizer."""

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
