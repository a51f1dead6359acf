"""MLP: fully connected policy and value networks, and the parts that other models share with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mpirl.errors import UserError
from mpirl.models.base import Distribution, Lean, Model, Output, is_small
from mpirl.models.distributions import DiagonalGaussian, distribution_for
from mpirl.models.lean import MOST_WORK, LeanMLP, affine
from mpirl.specs import ArraySpec, Specs

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


class MLP(Model):
    """Flattens all observation fields into one vector; separate policy and value trunks unless `shared`.

    hidden: widths of the hidden layers of each trunk. activation: "tanh" or "relu".
    """

    def __init__(
        self,
        specs: Specs,
        hidden: Sequence[int] = (64, 64),
        activation: str = "tanh",
        frame_stack: int = 1,
        shared: bool = False,
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UserError(f"model.activation={activation!r}: choose one of {', '.join(ACTIVATIONS)}")
        if any(width < 1 for width in hidden):
            raise UserError(f"model.hidden={list(hidden)}: every width must be at least 1")
        self.frame_stack = checked_frame_stack(frame_stack)
        self.distribution = distribution_for(specs.action)
        self.features = Features(specs.observation, frame_stack)
        widths = [self.features.size, *hidden]
        self.policy_trunk = trunk(widths, ACTIVATIONS[activation])
        self.value_trunk = None if shared else trunk(widths, ACTIVATIONS[activation])
        self.heads = Heads(widths[-1], self.distribution)

    def forward(self, observation: Mapping[str, Tensor], step_type: Tensor, core: Tensor) -> tuple[Output, Tensor]:
        features = self.features(observation)
        policy = self.policy_trunk(features)
        value = policy if self.value_trunk is None else self.value_trunk(features)
        return self.heads(policy, value), core

    def lean(self) -> Lean | None:
        choose = self.distribution.lean()
        on_cpu = all(parameter.device.type == "cpu" for parameter in self.parameters())
        if type(self) is not MLP or choose is None or not is_small(self) or not on_cpu:
            return None
        policy, value = self.heads.policy, self.heads.value
        mean, log_std = (policy.mean, policy.log_std) if isinstance(policy, GaussianHead) else (policy, None)
        return LeanMLP(self.features.num_values, self.policy_trunk, self.value_trunk, mean, log_std, value, choose)


class Features(nn.Module):
    """Concatenates observation fields into [B, size] float32: discrete fields one-hot, the others flattened as they are."""

    def __init__(self, fields: Mapping[str, ArraySpec], frame_stack: int = 1):
        super().__init__()
        self.num_values = {name: spec.num_values for name, spec in fields.items()}
        self.size = frame_stack * sum(spec.num_values or math.prod(spec.shape) for spec in fields.values())

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        parts = [self._encode(observation[name], num_values) for name, num_values in self.num_values.items()]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    @staticmethod
    def _encode(value: Tensor, num_values: int | None) -> Tensor:
        if num_values is not None:
            value = value.unsqueeze(-1) == torch.arange(num_values, device=value.device)
        return value.reshape(len(value), -1).float()


class Heads(nn.Module):
    """Features to outputs, in float32 even under autocast: rounded logits would distort probability ratios."""

    def __init__(self, size: int, distribution: Distribution):
        super().__init__()
        if isinstance(distribution, DiagonalGaussian):
            self.policy = GaussianHead(size, distribution)
        else:
            self.policy = linear(size, distribution.num_parameters, gain=0.01)
        self.value = linear(size, 1, gain=1.0)

    def forward(self, policy_features: Tensor, value_features: Tensor) -> Output:
        device = policy_features.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self.forward(policy_features, value_features)
        return Output(self.policy(policy_features.float()), self.value(value_features.float()).squeeze(-1))

    def joined(self) -> Callable[[Tensor], Output]:
        """Both heads of one vector of features, with the weights as they are now; of linear ones in one product, of few rows
        in numpy.
        """
        if not isinstance(self.policy, nn.Linear):
            return lambda features: self(features, features)
        weight = torch.cat([self.policy.weight, self.value.weight]).detach()
        bias = torch.cat([self.policy.bias, self.value.bias]).detach()
        is_on_cpu = weight.device.type == "cpu"
        few = MOST_WORK // weight.numel() if is_on_cpu else 0
        layer = (weight.t().contiguous().numpy(), bias.numpy()) if is_on_cpu else None

        def outputs(features: Tensor) -> Output:
            features = features.float()
            if len(features) > few:
                both = nn.functional.linear(features, weight, bias)
            else:
                both = torch.from_numpy(affine(features.numpy(), layer))
            return Output(both[:, :-1], both[:, -1])

        return outputs


class GaussianHead(nn.Module):
    """Means from the features; log standard deviations that do not depend on the state, learned from 0."""

    def __init__(self, size: int, distribution: DiagonalGaussian):
        super().__init__()
        self.mean = linear(size, distribution.noise_size, gain=0.01)
        self.log_std = nn.Parameter(torch.zeros(distribution.noise_size))

    def forward(self, features: Tensor) -> Tensor:
        mean = self.mean(features)
        return torch.cat([mean, self.log_std.expand_as(mean)], -1)


def trunk(widths: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    """Linear layers of these widths, each followed by the activation."""
    layers = []
    for size_in, size_out in zip(widths, widths[1:]):
        layers += [linear(size_in, size_out), activation()]
    return nn.Sequential(*layers)


def linear(size_in: int, size_out: int, gain: float = math.sqrt(2)) -> nn.Linear:
    return orthogonal(nn.Linear(size_in, size_out), gain)


def orthogonal(layer: nn.Linear | nn.Conv2d, gain: float = math.sqrt(2)) -> nn.Linear | nn.Conv2d:
    """Initialise a layer with an orthogonal weight and bias 0."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def checked_frame_stack(frame_stack: int) -> int:
    if frame_stack < 1:
        raise UserError(f"model.frame_stack={frame_stack}: must be at least 1 (1 means the latest frame alone)")
    return frame_stack
