"""The worker's own copy of the model decides: LocalPolicy with torch, for every model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpirl.models.base import Model, Output
from mpirl.models.lean import chooser
from mpirl.policies.base import Decision, Policy
from mpirl.policies.lean import LeanPolicy


def local_policy(model: Model, autocast: Callable[[], Any], extras: Collection[str] = ()) -> LeanPolicy | LocalPolicy:
    """A LeanPolicy where the model can (`Model.lean`) and acts in float32, else a LocalPolicy."""
    with autocast():
        in_float32 = not torch.is_autocast_enabled("cpu")
    return LeanPolicy(model, extras) if in_float32 and model.lean() else LocalPolicy(model, autocast, extras)


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
        self._acting, self._context = model, autocast
        self._choose = chooser(model.distribution) if self._device.type == "cpu" else None

    def refresh(self) -> None:
        """Convert the weights to the precision of acting once, for models that can (`acting_copy`).

        Optional: it makes small batches quicker. Who calls it must do so again whenever the weights change.
        """
        with self.autocast():
            if not hasattr(self.model, "acting_copy") or not torch.is_autocast_enabled(self._device.type):
                return
            acting = self.model.acting_copy(torch.get_autocast_dtype(self._device.type))
        if acting is not self.model:
            self._acting, self._context = acting, nullcontext

    def act(
        self, observation: Mapping[str, np.ndarray], step_type: np.ndarray, core: np.ndarray, noise: np.ndarray | None
    ) -> Decision:
        fields = {name: self._tensor(array) for name, array in observation.items()}
        output, next_core = self._forward(fields, self._tensor(step_type), self._tensor(core))
        if self._choose:
            action, log_prob = self._choose(output.parameters.float().numpy(), noise)
        else:
            chosen = self._chosen(output.parameters, None if noise is None else self._tensor(noise))
            action, log_prob = (tensor.cpu().numpy() for tensor in chosen)
        recorded = {name: getattr(output, name).cpu().numpy() for name in self.extras}
        return Decision(action, log_prob, next_core.cpu().numpy(), recorded)

    def decide(
        self, fields: Mapping[str, Tensor], step_type: Tensor, core: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """As `act`, from and to tensors on the model's device (action, log_prob, core, extras), without waiting for it."""
        output, next_core = self._forward(fields, step_type, core)
        return *self._chosen(output.parameters, noise), next_core, {name: getattr(output, name) for name in self.extras}

    @torch.inference_mode()
    def _forward(self, fields: Mapping[str, Tensor], step_type: Tensor, core: Tensor) -> tuple[Output, Tensor]:
        with self._context():
            return self._acting(fields, step_type, core)

    @torch.inference_mode()
    def _chosen(self, parameters: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Actions and their log-probabilities."""
        distribution = self.model.distribution
        action = distribution.mode(parameters) if noise is None else distribution.sample(parameters, noise)
        return action, distribution.log_prob(parameters, action)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)
