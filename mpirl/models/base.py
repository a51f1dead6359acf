"""The contract of a model: a torch module from observations to action parameters and values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor, nn


class Output(NamedTuple):
    """parameters: [B, A] float32, of the action distribution. value: [B] float32."""

    parameters: Tensor
    value: Tensor


Choose = Callable[[np.ndarray, Optional[np.ndarray]], tuple[np.ndarray, np.ndarray]]
"""Parameters float32 [B, A] and noise float32 [B, noise_size], or None, to actions [B, ...] and their log_prob float32 [B]."""


class Distribution(ABC):
    """A family of action distributions, as pure functions of its parameters [B, A]."""

    num_parameters: int
    noise_size: int
    """Numbers of noise that one sample takes."""
    noise_kind: str
    """"uniform" (in [0, 1)) or "normal": the noise that `sample` takes."""

    @abstractmethod
    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Actions [B, ...] from noise float32 [B, noise_size]; a deterministic function of both."""

    @abstractmethod
    def mode(self, parameters: Tensor) -> Tensor:
        """The most likely actions [B, ...]."""

    @abstractmethod
    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        """Log-probabilities (densities) [B] of actions [B, ...]."""

    @abstractmethod
    def entropy(self, parameters: Tensor) -> Tensor:
        """Entropies [B]."""

    def lean(self) -> Choose | None:
        """Optional: `sample` (`mode` without noise) and `log_prob` in numpy, which for a few rows takes less time than torch.

        It must choose as they do but for rounding; what a subclass changes must not be lost (see `Model.lean`).
        """
        return None


class Lean(ABC):
    """What a model and its distribution do, in numpy, on the memory of the model's weights.

    For models so small that torch's dispatch takes longer than their arithmetic. It must decide as they do but for rounding.
    """

    @abstractmethod
    def forward(
        self, observation: Mapping[str, np.ndarray], step_type: np.ndarray, core: np.ndarray
    ) -> tuple[Output, np.ndarray]:
        """As `Model.forward`, with arrays in place of tensors. What is given must not be changed."""

    @abstractmethod
    def choose(self, parameters: np.ndarray, noise: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Actions [B, ...] as `Distribution.sample` does with this noise, as `mode` without, and their log_prob float32 [B]."""


class Model(nn.Module):
    """Observations to outputs. Subclasses take (specs, **settings) and set the attributes.

    `frame_stack` is the number of latest frames in an observation it is given: frames [B, k, ...] oldest first where
    k = frame_stack > 1, and plain observations [B, ...] where it is 1.
    All parameters and floating-point buffers are float32: they travel as one flat vector.
    """

    frame_stack: int = 1
    core_size: int = 0
    distribution: Distribution

    def forward(self, observation: Mapping[str, Tensor], step_type: Tensor, core: Tensor) -> tuple[Output, Tensor]:
        """Outputs and next recurrent state.

        observation: {field: [B, (k,) ...]} in the emulator's dtype. step_type: uint8 [B]; a recurrent model zeroes its
        state at FIRST. core: float32 [B, core_size].
        """
        raise NotImplementedError

    def initial(self, num_lanes: int) -> Tensor:
        """The recurrent state of new lanes, float32 [num_lanes, core_size]."""
        return torch.zeros(num_lanes, self.core_size)

    def lean(self) -> Lean | None:
        """Optional: the model in numpy, for a worker to act with in float32 on its CPU. None: it acts with torch.

        What a subclass changes must not be lost: offer it for the very class that it was written for.
        """
        return None

    def acting_copy(self, dtype: torch.dtype) -> Model:
        """Optional: a copy to act with until the weights change, which were prepared for that once. Without autocast it computes
        what this model does under autocast to `dtype` (float32: without). This model: there is none. For subclasses, as `lean`.
        """
        return self


def autocast_dtype(device: str) -> torch.dtype:
    """What convolutions and products compute in on this kind of device, as it is now."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32


def is_small(model: Model) -> bool:
    """Whether the model's arithmetic is too little to gain from more threads, from bfloat16, or from torch when it acts."""
    return sum(parameter.numel() for parameter in model.parameters()) < 100_000
