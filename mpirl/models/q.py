"""QNetwork: a model of discrete actions read as action values, acted on epsilon-greedily."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mpirl.build import build
from mpirl.errors import UserError
from mpirl.models.base import Model, Output
from mpirl.models.distributions import Categorical, EpsilonGreedy
from mpirl.specs import Specs


class QNetwork(Model):
    """The wrapped model's action parameters are the values of the actions; the value is the largest of them.

    dueling: they are advantages instead, and the wrapped model's value is added to them less their mean (Wang et al. 2016,
    equation 9). epsilon: the probability of exploring; a buffer, so that it travels with the weights. It starts at 1.
    """

    epsilon: Tensor
    distribution: EpsilonGreedy

    def __init__(self, network: Model, dueling: bool = False):
        super().__init__()
        if not isinstance(network.distribution, Categorical):
            raise UserError("action values need a discrete action (num_values set): choose another algorithm or emulator")
        self.network, self.dueling = network, dueling
        self.frame_stack, self.core_size = network.frame_stack, network.core_size
        self.distribution = EpsilonGreedy(network.distribution.num_parameters, network.distribution.dtype)
        self.register_buffer("epsilon", torch.ones(()))

    def forward(self, observation: Mapping[str, Tensor], step_type: Tensor, core: Tensor) -> tuple[Output, Tensor]:
        output, core = self.network(observation, step_type, core)
        values = output.parameters
        if self.dueling:
            values = output.value.unsqueeze(-1) + values - values.mean(-1, keepdim=True)
        epsilon = self.epsilon.expand(len(values), 1)
        return Output(torch.cat([values, epsilon], -1), values.amax(-1)), core

    def initial(self, num_lanes: int) -> Tensor:
        return self.network.initial(num_lanes)

    def acting_copy(self, dtype: torch.dtype) -> Model:
        network = self.network.acting_copy(dtype) if type(self) is QNetwork else self.network
        if network is self.network:
            return self
        acting = QNetwork(network, self.dueling)
        acting.epsilon = self.epsilon
        return acting


def q_network(specs: Specs, network: Mapping[str, Any], dueling: bool = False) -> QNetwork:
    """A QNetwork around the model of a config node."""
    return QNetwork(build(network, "model", specs=specs), dueling)
