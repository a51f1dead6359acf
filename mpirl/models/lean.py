"""LeanMLP: what a small MLP and its distribution do, in numpy.

For a few rows torch's dispatch takes longer than the arithmetic. The arrays lie on the memory of the parameters, so
that weights written there are acted with at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor, nn

from mpirl.models.base import Choose, Lean, Output

Layer = tuple[np.ndarray, np.ndarray]

MOST_WORK = 1 << 18
"""Multiplications of one matrix product. Above, OpenBLAS starts threads, which take milliseconds where cores are shared."""


class LeanMLP(Lean):
    """policy_trunk, value_trunk: Linear layers, each followed by `activation`; None shares the policy's.

    num_values: by observation field, of discrete ones. choose: the distribution's, as `Distribution.lean` gives it.
    """

    def __init__(
        self,
        num_values: Mapping[str, int | None],
        policy_trunk: nn.Sequential,
        value_trunk: nn.Sequential | None,
        policy_head: nn.Linear,
        log_std: Tensor | None,
        value_head: nn.Linear,
        choose: Choose,
    ):
        self._num_values = dict(num_values)
        self._policy_trunk = _trunk(policy_trunk)
        self._value_trunk = None if value_trunk is None else _trunk(value_trunk)
        self._policy_head, self._value_head = _layer(policy_head), _layer(value_head)
        self._log_std = None if log_std is None else log_std.detach().numpy()
        layers = [layer for layer, _ in (*self._policy_trunk, *(self._value_trunk or ()))]
        self._rows = max(1, MOST_WORK // max(weight.size for weight, _ in (*layers, self._policy_head)))
        self._choose = choose

    def forward(
        self, observation: Mapping[str, np.ndarray], step_type: np.ndarray, core: np.ndarray
    ) -> tuple[Output, np.ndarray]:
        features = self._features(observation)
        if len(features) <= self._rows:
            return Output(*self._outputs(features)), core
        blocks = (features[start : start + self._rows] for start in range(0, len(features), self._rows))
        return Output(*map(np.concatenate, zip(*map(self._outputs, blocks)))), core

    def choose(self, parameters: np.ndarray, noise: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        return self._choose(parameters, noise)

    def _outputs(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Parameters [B, A] and values [B] for features float32 [B, size]."""
        policy = _activated(features, self._policy_trunk)
        value = policy if self._value_trunk is None else _activated(features, self._value_trunk)
        parameters = affine(policy, self._policy_head)
        if self._log_std is not None:
            parameters = np.concatenate([parameters, np.broadcast_to(self._log_std, parameters.shape)], 1)
        return parameters, affine(value, self._value_head)[:, 0]

    def _features(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """float32 [B, size], as the module `Features` does."""
        parts = [_encoded(observation[name], num_values) for name, num_values in self._num_values.items()]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, 1)


def _trunk(trunk: nn.Sequential) -> list[tuple[Layer, Callable[..., np.ndarray]]]:
    activations = {nn.Tanh: np.tanh, nn.ReLU: _relu}
    return [(_layer(linear), activations[type(activation)]) for linear, activation in zip(trunk[::2], trunk[1::2])]


def _layer(linear: nn.Linear) -> Layer:
    """Weight [in, out] and bias [out], on the parameters' memory."""
    return linear.weight.detach().numpy().T, linear.bias.detach().numpy()


def _activated(features: np.ndarray, trunk: list[tuple[Layer, Callable[..., np.ndarray]]]) -> np.ndarray:
    for layer, activation in trunk:
        features = affine(features, layer)
        activation(features, out=features)
    return features


def affine(features: np.ndarray, layer: Layer) -> np.ndarray:
    """features @ weight + bias, [B, out]."""
    weight, bias = layer
    features = features @ weight
    features += bias
    return features


def _relu(values: np.ndarray, out: np.ndarray) -> np.ndarray:
    return np.maximum(values, 0.0, out=out)


def _encoded(values: np.ndarray, num_values: int | None) -> np.ndarray:
    """One field as float32 [B, size]: one-hot if discrete, else flattened."""
    if num_values is not None:
        values = values[..., None] == np.arange(num_values)
    return values.reshape(len(values), -1).astype(np.float32, copy=False)
