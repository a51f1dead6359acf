"""The worker's own copy of the model decides: LocalPolicy with torch, for every model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpirl.models.base import Choose, Model, Output, autocast_dtype
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
        self._choose = model.distribution.lean() if self._device.type == "cpu" else None

    def refresh(self) -> None:
        """Prepare the weights for acting once, for models that can (`Model.acting_copy`).

        Optional: it makes small batches quicker. Who calls it must do so again whenever the weights change.
        """
        with self.autocast():
            dtype = autocast_dtype(self._device.type)
        acting = self.model.acting_copy(dtype)
        if acting is not self.model:
            self._acting, self._context = acting, nullcontext

    def act(
        self, observation: Mapping[str, np.ndarray], step_type: np.ndarray, core: np.ndarray, noise: np.ndarray | None
    ) -> Decision:
        if self._choose and type(self).decide is LocalPolicy.decide:  # what a subclass decides must not be lost
            return self._act_on_cpu(self._choose, observation, step_type, core, noise)
        fields = {name: self._tensor(array) for name, array in observation.items()}
        given = None if noise is None else self._tensor(noise)
        action, log_prob, next_core, extras = self.decide(fields, self._tensor(step_type), self._tensor(core), given)
        recorded = {name: tensor.cpu().numpy() for name, tensor in extras.items()}
        return Decision(action.cpu().numpy(), log_prob.cpu().numpy(), next_core.cpu().numpy(), recorded)

    @torch.inference_mode()
    def _act_on_cpu(
        self,
        choose: Choose,
        observation: Mapping[str, np.ndarray],
        step_type: np.ndarray,
        core: np.ndarray,
        noise: np.ndarray | None,
    ) -> Decision:
        """As `act`, with as few operations as it takes: between emulators each finds its code gone from the caches."""
        fields = {name: torch.from_numpy(array) for name, array in observation.items()}
        with self._context():
            output, next_core = self._acting(fields, torch.from_numpy(step_type), torch.from_numpy(core))
        action, log_prob = choose(output.parameters.float().numpy(), noise)
        return Decision(action, log_prob, next_core.numpy(), {name: getattr(output, name).numpy() for name in self.extras})

    @torch.inference_mode()
    def decide(
        self, fields: Mapping[str, Tensor], step_type: Tensor, core: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """As `act`, from and to tensors on the model's device (action, log_prob, core, extras), without waiting for it."""
        with self._context():
            output, next_core = self._acting(fields, step_type, core)
        action, log_prob = self._chosen(output.parameters, noise)
        return action, log_prob, next_core, {name: getattr(output, name) for name in self.extras}

    def _chosen(self, parameters: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Actions and their log-probabilities; on the CPU in numpy, whose few operations on few numbers take less time."""
        if self._choose:
            found = self._choose(parameters.float().numpy(), None if noise is None else noise.numpy())
            return torch.from_numpy(found[0]), torch.from_numpy(found[1])
        distribution = self.model.distribution
        action = distribution.mode(parameters) if noise is None else distribution.sample(parameters, noise)
        return action, distribution.log_prob(parameters, action)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)
