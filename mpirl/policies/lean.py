"""LeanPolicy: the worker's own copy of the model decides, in numpy."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from mpirl.models.base import Lean, Model, Output
from mpirl.policies.base import Decision, Policy


class LeanPolicy(Policy):
    """Acts with `model.lean()`, in float32.

    extras: what to record beside the action, any of "value" (float32 [N]) and "parameters" (float32 [N, A]).
    """

    def __init__(self, model: Model, extras: Collection[str] = ()):
        unknown = set(extras) - set(Output._fields)
        assert not unknown, f"a policy records {Output._fields}, not {unknown}"
        self.model = model
        self.extras = tuple(extras)
        self.refresh()

    def refresh(self) -> None:
        """Find the weights again, if the model's parameters have moved to other memory since."""
        lean = self.model.lean()
        assert lean is not None, f"{type(self.model).__name__} has no lean form"
        self._lean: Lean = lean

    def act(
        self, observation: Mapping[str, np.ndarray], step_type: np.ndarray, core: np.ndarray, noise: np.ndarray | None
    ) -> Decision:
        output, next_core = self._lean.forward(observation, step_type, core)
        action, log_prob = self._lean.choose(output.parameters, noise)
        return Decision(action, log_prob, next_core, {name: getattr(output, name) for name in self.extras})
