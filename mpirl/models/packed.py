"""Layers for inference on a CPU whose weights lie in the layout that oneDNN computes in.

Torch's own layers bring their weights into that layout at every call, which for a batch of a few lanes takes longer than the
computation. There is no public way to do it once; these operations are those that torch's compiler emits.
"""

from __future__ import annotations

import platform
from collections.abc import Callable

import torch
from torch import Tensor, nn

Layer = Callable[[Tensor], Tensor]

NEEDED = ("_reorder_linear_weight", "_linear_pointwise", "_convolution_pointwise", "_is_mkldnn_bf16_supported")


def can_pack(weight: Tensor) -> bool:
    """Whether this torch and this CPU can, for weights of this type."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    operations = torch.ops.mkldnn
    if not all(hasattr(operations, name) for name in NEEDED) or not hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight"):
        return False
    if weight.dtype == torch.bfloat16:
        return operations._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 and platform.machine().lower() in ("x86_64", "amd64")


def packed_convolution(weight: Tensor, bias: Tensor, stride: int) -> Layer:
    """relu(conv2d(x)) without padding, for x [B, C, H, W] of the weight's type. It is packed for the first x; others may differ."""
    geometry = [0, 0], [stride, stride], [1, 1], 1
    found: list[Tensor] = []

    def layer(x: Tensor) -> Tensor:
        if not found:
            found.append(torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), *geometry, list(x.shape)))
        return torch.ops.mkldnn._convolution_pointwise(x, found[0], bias, *geometry, "relu", [], "")

    return layer


def packed_linear(layer: nn.Linear) -> Layer:
    """relu(layer(x)), for x [B, size] of the weight's type. The weight is packed for the first x; others may differ."""
    found: list[Tensor] = []

    def forward(x: Tensor) -> Tensor:
        if not found:
            found.append(torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), len(x)))
        return torch.ops.mkldnn._linear_pointwise(x, found[0], layer.bias, "relu", [], "")

    return forward
