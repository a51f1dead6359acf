"""NatureCNN: the convolutional network of Mnih et al. (2015) for image observations, and the automatic choice of a model."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from mpirl.errors import UserError
from mpirl.models.base import Model, Output, autocast_dtype
from mpirl.models.distributions import distribution_for
from mpirl.models.mlp import MLP, Features, Heads, checked_frame_stack, linear, orthogonal
from mpirl.models.packed import Layer, can_pack, packed_convolution, packed_linear
from mpirl.models.sharing import in_shares
from mpirl.specs import ArraySpec, Specs

SMALLEST = 36
"""Height and width below which the three convolutions leave nothing."""


class NatureCNN(Model):
    """Three convolutions and a hidden layer, shared by policy and value.

    The image is the one uint8 field [H, W] or [H, W, C] with H and W of at least 36. Other fields join before the
    hidden layer. channels: of the three convolutions. hidden: width of that layer. The network sees
    (pixel - pixel_mean) / pixel_std, with pixels from 0 to 255; where most pixels have one colour, take that as the mean.

    Where H and W are multiples of 4, the first layer (8x8, stride 4) is computed as a 2x2 convolution over 4x4 pixels
    folded into channels: the same function of the same weight [channels[0], C, 8, 8], and quicker.
    """

    def __init__(
        self,
        specs: Specs,
        frame_stack: int = 4,
        hidden: int = 512,
        channels: Sequence[int] = (32, 64, 64),
        pixel_mean: float = 0,
        pixel_std: float = 255,
    ):
        super().__init__()
        if not isinstance(hidden, int) or hidden < 1:
            raise UserError(f"model.hidden={hidden}: NatureCNN takes one width, at least 1")
        if len(channels) != 3 or min(channels) < 1:
            raise UserError(f"model.channels={list(channels)}: NatureCNN takes three numbers of channels, each at least 1")
        if not 0 <= pixel_mean <= 255:
            raise UserError(f"model.pixel_mean={pixel_mean}: pixels are from 0 to 255")
        if not 0 < pixel_std < math.inf:
            raise UserError(f"model.pixel_std={pixel_std}: must be more than 0; 255 leaves pixels from 0 to 1")
        self.frame_stack = checked_frame_stack(frame_stack)
        self.pixel_mean, self.pixel_std = pixel_mean, pixel_std
        self.distribution = distribution_for(specs.action)
        self.image = image_field(specs)
        height, width, *depth = specs.observation[self.image].shape
        self.folds = height % 4 == 0 and width % 4 == 0
        first, second, third = channels
        self.conv1 = orthogonal(nn.Conv2d(frame_stack * (depth[0] if depth else 1), first, 8, stride=4))
        self.conv2 = orthogonal(nn.Conv2d(first, second, 4, stride=2))
        self.conv3 = orthogonal(nn.Conv2d(second, third, 3))
        others = {name: spec for name, spec in specs.observation.items() if name != self.image}
        self.features = Features(others, frame_stack) if others else None
        size = third * convolved(height) * convolved(width) + (self.features.size if others else 0)
        self.hidden = linear(size, hidden)
        self.heads = Heads(hidden, self.distribution)
        self._ready: tuple[Layer, ...] = ()  # of an acting copy, which computes in this type
        self._dtype: torch.dtype | None = None

    def forward(self, observation: Mapping[str, Tensor], step_type: Tensor, core: Tensor) -> tuple[Output, Tensor]:
        image = observation[self.image]
        *convolutions, last = self._ready or self._layers()
        if self._ready:  # not even a look at the parameters, which would take 4 % of a decision for a few lanes
            hidden = self._convolve(image, convolutions)
        else:
            weights = [parameter for layer in (self.conv1, self.conv2, self.conv3) for parameter in layer.parameters()]
            hidden = in_shares(lambda rows: self._convolve(image[rows], convolutions), len(image), weights)
        if self.features is not None:
            hidden = torch.cat([hidden, self.features(observation).to(hidden.dtype)], -1)
        return self._outputs(last(hidden)), core

    def acting_copy(self, dtype: torch.dtype) -> Model:
        """It holds the weights converted and in the layout of the computation: else every call does that anew, which for a few
        lanes costs as much as the rest. In float32 there is none where this machine knows no such layout.
        """
        if type(self) is not NatureCNN:
            return self
        kernel = self._kernel().detach().to(dtype)
        is_packed = can_pack(kernel)
        if not is_packed and dtype == torch.float32:
            return self
        layers = (self.conv2, self.conv3, self.hidden)
        rounded = [self.conv1.bias, *(parameter for layer in layers for parameter in layer.parameters())]
        shared = {id(parameter): parameter for parameter in self.parameters()}  # what is not converted is not copied either
        converted = {id(parameter): nn.Parameter(parameter.detach().to(dtype), False) for parameter in rounded}
        acting = copy.deepcopy(self, shared | converted)
        acting._ready = acting._packed(kernel) if is_packed else acting._layers(kernel)
        acting._outputs = acting.heads.joined()
        acting._dtype = dtype
        return acting

    def _outputs(self, hidden: Tensor) -> Output:
        return self.heads(hidden, hidden)

    def _convolve(self, image: Tensor, convolutions: Sequence[Layer]) -> Tensor:
        """The three convolutions, [B, size]."""
        hidden = self._input(self._frames(image))
        for layer in convolutions:
            hidden = layer(hidden)
        return hidden.flatten(1)

    def _layers(self, kernel: Tensor | None = None) -> tuple[Layer, ...]:
        """The activated layers: three convolutions and the hidden layer. kernel: what `_kernel` gives; None: anew in each call."""
        stride = 1 if self.folds else 4

        def first(frames: Tensor) -> Tensor:
            return relu(functional.conv2d(frames, self._kernel() if kernel is None else kernel, self.conv1.bias, stride=stride))

        return first, *(lambda hidden, layer=layer: relu(layer(hidden)) for layer in (self.conv2, self.conv3, self.hidden))

    def _packed(self, kernel: Tensor) -> tuple[Layer, ...]:
        """As `_layers`, for inference."""
        first = packed_convolution(kernel, self.conv1.bias, 1 if self.folds else 4)
        others = (packed_convolution(layer.weight.detach(), layer.bias, layer.stride[0]) for layer in (self.conv2, self.conv3))
        return first, *others, packed_linear(self.hidden)

    def _frames(self, image: Tensor) -> Tensor:
        """uint8 [B, (k,) H, W, (C)] to [B, channels, H, W]."""
        if self.frame_stack == 1:
            image = image.unsqueeze(1)
        return image if image.ndim == 4 else image.movedim(-1, 2).flatten(1, 2)

    def _input(self, frames: Tensor) -> Tensor:
        """The first convolution's input, pixels less their mean: exact in bfloat16 for a whole mean, and the kernel divides."""
        dtype = self._dtype or autocast_dtype(frames.device.type)
        frames = fold(frames) if self.folds else frames.contiguous(memory_format=torch.channels_last)
        frames = frames.to(dtype)
        return frames.sub_(self.pixel_mean) if self.pixel_mean else frames

    def _kernel(self) -> Tensor:
        """The first convolution's weight for `_input`."""
        weight = self.conv1.weight / self.pixel_std
        return functional.pixel_unshuffle(weight, 4) if self.folds else weight


def fold(frames: Tensor) -> Tensor:
    """Space to depth: uint8 [B, C, H, W] to [B, 16 C, H / 4, W / 4] in channels_last memory; as `pixel_unshuffle(frames, 4)`.

    Four neighbours in a row move as one int32, which makes it about four times quicker.
    """
    batch, channels, height, width = frames.shape
    if frames.stride(-1) != 1:
        frames = frames.contiguous()
    if frames.device.type == "cpu" and not torch.compiler.is_compiling():
        folded = torch.from_numpy(folded_on_cpu(frames.numpy()))
    else:
        quads = frames.view(torch.int32).unflatten(2, (height // 4, 4))  # [B, C, H / 4, 4, W / 4]
        folded = quads.permute(0, 2, 4, 1, 3).contiguous().view(torch.uint8)
    return folded.view(batch, height // 4, width // 4, 16 * channels).permute(0, 3, 1, 2)


def folded_on_cpu(frames: np.ndarray) -> np.ndarray:
    """What `fold` does, uint8 [B, H / 4, W / 4, 16 C]: first whole groups of four rows move, so that what is then to be
    transposed has even strides. That takes two thirds of the time, and numpy begins an operation sooner than torch.
    """
    batch, channels, height, width = frames.shape
    quads = frames.view(np.int32).reshape(batch, channels, height // 4, width)
    rows = np.ascontiguousarray(quads.transpose(0, 2, 1, 3)).reshape(batch, height // 4, 4 * channels, width // 4)
    return np.ascontiguousarray(rows.transpose(0, 1, 3, 2)).view(np.uint8)


def relu(hidden: Tensor) -> Tensor:
    """relu in place."""
    if hidden.device.type != "cpu" or torch.compiler.is_compiling():
        return functional.relu_(hidden)
    return Relu.apply(hidden) if torch.is_grad_enabled() else relu_(hidden)


class Relu(torch.autograd.Function):
    """relu in place; the gradient takes the memory format of the output, without which layers of mixed formats are slow."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        ctx.mark_dirty(hidden)
        ctx.save_for_backward(relu_(hidden))
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        if output.ndim == 4 and output.is_contiguous(memory_format=torch.channels_last):
            gradient = gradient.contiguous(memory_format=torch.channels_last)
        if output.dtype == torch.bfloat16:
            masked = torch.ops.aten.threshold_backward(gradient.view(torch.int16), output.view(torch.int16), 0)
            return masked.view(torch.bfloat16)
        return torch.ops.aten.threshold_backward(gradient, output, 0)


def relu_(hidden: Tensor) -> Tensor:
    """As `functional.relu_` on the CPU, but quicker in bfloat16: a number's bits, read as an integer, have the number's sign.

    A nan may become 0 that way; `fitting.clip` sees to it that no weight becomes nan alone.
    """
    if hidden.dtype == torch.bfloat16:
        hidden.view(torch.int16).clamp_min_(0)
        return hidden
    return functional.relu_(hidden)


def convolved(size: int) -> int:
    """Height or width after the three convolutions."""
    return ((size - 8) // 4 + 1 - 4) // 2 + 1 - 2


def is_image(spec: ArraySpec) -> bool:
    """Whether the spec is of uint8 [H, W] or [H, W, C], large enough for NatureCNN."""
    return spec.dtype == "uint8" and len(spec.shape) in (2, 3) and min(spec.shape[:2]) >= SMALLEST


def image_field(specs: Specs) -> str:
    """The name of the one image among the observation fields."""
    images = [name for name, spec in specs.observation.items() if is_image(spec)]
    if len(images) == 1:
        return images[0]
    found = ", ".join(f"{name} {spec.dtype}{list(spec.shape)}" for name, spec in specs.observation.items())
    raise UserError(
        f"NatureCNN needs exactly one image, uint8 [H, W] or [H, W, C] with H and W at least {SMALLEST}; "
        f"the emulator gives {found}: use model=mlp, or a model of your own"
    )


def model_for(specs: Specs, **settings: Any) -> Model:
    """NatureCNN where an observation field is an image, else MLP, with these settings."""
    kind = NatureCNN if any(is_image(spec) for spec in specs.observation.values()) else MLP
    known = list(inspect.signature(kind).parameters)[1:]
    for key in settings:
        if key not in known:
            raise UserError(f"unknown key model.{key}; {kind.__name__}, chosen for this emulator, takes: {', '.join(known)}")
    return kind(specs, **settings)
