"""LocalPolicy: the worker's own copy of the model decides."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpirl.models.base import Model, Output
from mpirl.policies.base import Decision, Policy


class LocalPolicy(Policy):
    """Acts with `model` in the precision of `autocast()`.

    extras: what to record beside the action, any of "value" (float32 [N]) and "parameters" (float32 [N, A]).
    """

    def __init__(self, model: Model, autocast: Callable[[], Any], extras: Collection[str] = ()):
        unknown = set(extras) - set(Output._fields)
        assert not unknown, f"a policy records {Output._fields}, not {unknown}"
        self.model = model
        self.autocast = autocast
        self.extras = tuple(extras)
        self._device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self._acting = model

    def refresh(self) -> None:
        """Convert the weights to the precision of acting once, for models that can (`acting_copy`).

        Optional: it makes small batches quicker. Who calls it must do so again whenever the weights change.
        """
        with self.autocast():
            if hasattr(self.model, "acting_copy") and torch.is_autocast_enabled(self._device.type):
                self._acting = self.model.acting_copy(torch.get_autocast_dtype(self._device.type))

    @torch.inference_mode()
    def act(
        self, observation: Mapping[str, np.ndarray], step_type: np.ndarray, core: np.ndarray, noise: np.ndarray | None
    ) -> Decision:
        fields = {name: self._tensor(array) for name, array in observation.items()}
        with self.autocast():
            output, next_core = self._acting(fields, self._tensor(step_type), self._tensor(core))
        distribution = self.model.distribution
        parameters = output.parameters
        action = distribution.mode(parameters) if noise is None else distribution.sample(parameters, self._tensor(noise))
        return Decision(
            action.cpu().numpy(),
            distribution.log_prob(parameters, action).cpu().numpy(),
            next_core.cpu().numpy(),
            {name: getattr(output, name).cpu().numpy() for name in self.extras},
        )

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)
