"""Weights: one flat float32 vector that a module's parameters and floating-point buffers alias."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from mpirl.errors import UserError


class FlatWeights:
    """Moves the module's weights into one contiguous vector [P]; writing to the vector is loading the module.

    Parameters come first, in the module's order, then buffers; integer and boolean buffers stay where they are. The
    aliasing outlives in-place changes (optimizer steps, `load_state_dict`); moving the module to another device or
    dtype ends it.
    """

    def __init__(self, module: nn.Module):
        tensors = _floating(module)
        device = tensors[0].device if tensors else torch.device("cpu")
        self.vector: Tensor = torch.zeros(sum(tensor.numel() for tensor in tensors), dtype=torch.float32, device=device)
        start = 0
        for tensor in tensors:
            part = self.vector[start : start + tensor.numel()].view(tensor.shape)
            part.copy_(tensor.detach())
            tensor.data = part
            start += tensor.numel()

    @property
    def array(self) -> np.ndarray:
        """The vector as a numpy array, float32 [P], on the same memory (CPU only)."""
        return self.vector.numpy()

    @property
    def size(self) -> int:
        """P."""
        return self.vector.numel()


class ReceivedWeights:
    """A worker's weights and the array that a broadcast fills: float32 [P], the weights themselves; with the wire "bf16"
    uint16 [P], the bits of bfloat16 numbers, from which `load` makes the weights.
    """

    def __init__(self, flat: FlatWeights, wire: str = "fp32"):
        self._flat = flat
        self._wire = flat.vector if wire == "fp32" else torch.zeros(flat.size, dtype=torch.bfloat16)
        self.array = wire_array(self._wire)

    def load(self) -> None:
        """Bring the weights up to date with the array."""
        if self._wire is not self._flat.vector:
            self._flat.vector.copy_(self._wire)


def wire_array(tensor: Tensor) -> np.ndarray:
    """A tensor on the CPU as the numpy array that is broadcast; of bfloat16, which numpy has not, the bits as uint16."""
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _floating(module: nn.Module) -> list[Tensor]:
    """The module's parameters and floating-point buffers, each once, all float32."""
    tensors = []
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and tensor.dtype == torch.float32:
            tensors.append(tensor)
        elif tensor.is_floating_point() or tensor.is_complex() or isinstance(tensor, nn.Parameter):
            raise UserError(
                f"{type(module).__name__}.{name} is {tensor.dtype}: weights travel as float32, "
                "so keep it in float32 and convert where it is used"
            )
    return tensors
