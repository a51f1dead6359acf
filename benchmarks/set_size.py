"""A model of a set number of weights that computes next to nothing: what it costs to send them is left."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mpirl.models.base import Model, Output
from mpirl.models.distributions import distribution_for
from mpirl.specs import Specs


class SetSize(Model):
    """`size` weights, of which the first are the outputs whatever the observation."""

    def __init__(self, specs: Specs, size: int):
        super().__init__()
        self.distribution = distribution_for(specs.action)
        self.weights = nn.Parameter(torch.zeros(size))

    def forward(self, observation: Mapping[str, Tensor], step_type: Tensor, core: Tensor) -> tuple[Output, Tensor]:
        outputs = self.distribution.num_parameters
        parameters = self.weights[:outputs].expand(len(step_type), outputs)
        return Output(parameters, self.weights[outputs].expand(len(step_type))), core
