"""Action distributions: categorical and epsilon-greedy for discrete actions, a diagonal Gaussian for continuous ones.

They are pure functions of their parameters and compute in float32 whatever precision the parameters come in.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mpirl.errors import UserError
from mpirl.models.base import Choose, Distribution
from mpirl.specs import ArraySpec


class Categorical(Distribution):
    """Actions 0 .. num_values - 1; the parameters [B, num_values] are logits (unnormalised log-probabilities)."""

    noise_size = 1
    noise_kind = "uniform"

    def __init__(self, num_values: int, dtype: torch.dtype = torch.int64):
        self.num_parameters = num_values
        self.dtype = dtype

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Invert the cumulative distribution at noise uniform in [0, 1); actions [B]."""
        cumulative = parameters.float().softmax(-1).cumsum(-1)
        # Scaling by the last sum, which rounding leaves near 1, keeps actions of probability 0 out of reach.
        return (cumulative <= noise.float() * cumulative[:, -1:]).sum(-1).to(self.dtype)

    def mode(self, parameters: Tensor) -> Tensor:
        return parameters.argmax(-1).to(self.dtype)

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        return parameters.float().log_softmax(-1).gather(-1, action.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        log_prob = parameters.float().log_softmax(-1)
        # A logit of -inf (an impossible action) contributes 0, not 0 * -inf.
        return -(log_prob.exp() * log_prob.clamp(min=torch.finfo(torch.float32).min)).sum(-1)

    def lean(self) -> Choose | None:
        return partial(choose_category, dtype=_numpy(self.dtype)) if type(self) is Categorical else None


class EpsilonGreedy(Distribution):
    """Actions 0 .. num_values - 1; the parameters [B, num_values + 1] are their values, then epsilon (taken within 0 .. 1).

    With probability epsilon any action, each as likely as the others, else the first of those with the largest value.
    """

    noise_size = 2
    noise_kind = "uniform"

    def __init__(self, num_values: int, dtype: torch.dtype = torch.int64):
        self.num_values, self.num_parameters = num_values, num_values + 1
        self.dtype = dtype

    def values(self, parameters: Tensor) -> Tensor:
        """The values of the actions [B, num_values]."""
        return parameters[:, :-1]

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Explore where the first noise is below epsilon, with the action that the second one names."""
        explored = (noise[:, 1].float() * self.num_values).long().clamp(max=self.num_values - 1)
        return torch.where(noise[:, 0] < self._epsilon(parameters), explored, self._greedy(parameters)).to(self.dtype)

    def mode(self, parameters: Tensor) -> Tensor:
        return self._greedy(parameters).to(self.dtype)

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        return self._probabilities(parameters).gather(-1, action.long().unsqueeze(-1)).squeeze(-1).log()

    def entropy(self, parameters: Tensor) -> Tensor:
        return torch.special.entr(self._probabilities(parameters)).sum(-1)

    def _greedy(self, parameters: Tensor) -> Tensor:
        return self.values(parameters).argmax(-1)

    def _epsilon(self, parameters: Tensor) -> Tensor:
        return parameters[:, -1].float().clamp(0, 1)

    def _probabilities(self, parameters: Tensor) -> Tensor:
        """[B, num_values]."""
        epsilon = self._epsilon(parameters).unsqueeze(-1)
        greedy = torch.nn.functional.one_hot(self._greedy(parameters), self.num_values)
        return epsilon / self.num_values + (1 - epsilon) * greedy


class DiagonalGaussian(Distribution):
    """Real vectors with independent components; the parameters [B, 2 D] are D means, then D log standard deviations."""

    noise_kind = "normal"

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32):
        self.shape = tuple(shape)
        self.dtype = dtype
        self.noise_size = math.prod(self.shape)
        self.num_parameters = 2 * self.noise_size

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = self._split(parameters)
        return self._shaped(mean + log_std.exp() * noise.float())

    def mode(self, parameters: Tensor) -> Tensor:
        return self._shaped(self._split(parameters)[0])

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        mean, log_std = self._split(parameters)
        deviation = (action.float().reshape(mean.shape) - mean) * (-log_std).exp()
        return (-0.5 * deviation.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        return (self._split(parameters)[1] + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def std(self, parameters: Tensor) -> Tensor:
        """Standard deviations [B, D]."""
        return self._split(parameters)[1].exp()

    def lean(self) -> Choose | None:
        is_this = type(self) is DiagonalGaussian
        return partial(choose_vector, shape=self.shape, dtype=_numpy(self.dtype)) if is_this else None

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = parameters.float().split(self.noise_size, -1)
        return mean, log_std

    def _shaped(self, flat: Tensor) -> Tensor:
        return flat.reshape(-1, *self.shape).to(self.dtype)


def distribution_for(action: ArraySpec) -> Distribution:
    """The distribution over actions of this spec; sampled actions have its shape and dtype."""
    dtype = getattr(torch, action.dtype, None)
    if action.is_discrete and dtype is not None:
        return Categorical(action.num_values, dtype)
    if dtype is not None and dtype.is_floating_point:
        return DiagonalGaussian(action.shape, dtype)
    raise UserError(
        f"no action distribution for actions of shape {action.shape} and dtype {action.dtype}: "
        "use a discrete action (num_values set) or a floating-point array, or give the emulator a wrapper that does"
    )


def choose_category(logits: np.ndarray, noise: np.ndarray | None, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Categorical's `sample` (`mode` without noise) and `log_prob`, from logits float32 [B, A] and noise float32 [B, 1]."""
    shifted = logits - np.maximum.reduce(logits, axis=1, keepdims=True)
    cumulative = np.exp(shifted).cumsum(1)  # not normalised
    total = cumulative[:, -1:]
    action = logits.argmax(1) if noise is None else np.add.reduce(cumulative <= noise * total, axis=1)
    log_prob = shifted[np.arange(len(action)), action] - np.log(total[:, 0])
    return action.astype(dtype, copy=False), log_prob


def choose_vector(
    parameters: np.ndarray, noise: np.ndarray | None, shape: tuple[int, ...], dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """DiagonalGaussian's `sample` (`mode` without noise) and `log_prob`, from float32 [B, 2 D] and noise float32 [B, D]."""
    size = parameters.shape[1] // 2
    mean, log_std = parameters[:, :size], parameters[:, size:]
    flat = (mean if noise is None else mean + np.exp(log_std) * noise).astype(dtype, copy=False)
    deviation = (flat.astype(np.float32, copy=False) - mean) * np.exp(-log_std)
    log_prob = np.add.reduce(-0.5 * deviation * deviation - log_std - np.float32(0.5 * math.log(2 * math.pi)), axis=1)
    return flat.reshape(-1, *shape), log_prob


def _numpy(dtype: torch.dtype) -> np.dtype:
    return np.dtype(str(dtype).removeprefix("torch."))
