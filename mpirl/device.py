"""The learner's device: batches staged to it, weights published from it, and the precision it computes in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpirl.algorithms.base import Batch
from mpirl.errors import UserError
from mpirl.models.base import Model, is_small
from mpirl.models.stacking import ages, observe_with
from mpirl.specs import Specs
from mpirl.trajectory import Trajectory
from mpirl.weights import FlatWeights, wire_array

Autocast = Callable[[], AbstractContextManager]

PROBE_ROWS = {"cpu": 64, "cuda": 256}
"""Observations of the minibatch that precisions are compared with: enough to tell, and on a CPU every one takes time."""


def choose_device(name: str) -> torch.device:
    """The device called "auto" (the first GPU if there is one), "cpu", "cuda" or "cuda:N"."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"no learner for {device.type}")
    except RuntimeError as error:
        raise UserError(f"device={name!r}: write auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={name!r}: torch sees {torch.cuda.device_count()} GPUs here; write device=auto")
    return device


def pinned(device: torch.device) -> Callable[[tuple[int, ...], np.dtype], np.ndarray]:
    """An allocator of zeroed host arrays; page-locked where a GPU will copy from them."""
    if device.type != "cuda":
        return np.zeros
    return lambda shape, dtype: torch.zeros(shape, dtype=getattr(torch, np.dtype(dtype).name), pin_memory=True).numpy()


class PublishedWeights:
    """The learner's weights as the host array that is broadcast: float32 [P], or with the wire "bf16" rounded, uint16 [P].

    On the CPU the float32 parameters alias it, so publishing costs nothing; from a GPU `publish` copies to page-locked memory.
    """

    def __init__(self, flat: FlatWeights, wire: str = "fp32"):
        self.flat = flat
        dtype, on_host = {"fp32": torch.float32, "bf16": torch.bfloat16}[wire], flat.vector.device.type == "cpu"
        is_same = on_host and wire == "fp32"
        self._host = flat.vector if is_same else torch.empty(flat.size, dtype=dtype, pin_memory=not on_host)
        self.array = wire_array(self._host)
        self.publish()

    def publish(self) -> None:
        """Bring the array up to date with the parameters."""
        if self._host is not self.flat.vector:
            self._host.copy_(self.flat.vector)

    def load(self, vector: Tensor) -> None:
        """Set the parameters from float32 [P]."""
        if vector.shape != self.flat.vector.shape:
            raise UserError(
                f"the checkpoint holds {len(vector):,} weights, this model has {self.flat.size:,}: same model settings?"
            )
        with torch.no_grad():
            self.flat.vector.copy_(vector)
        self.publish()


class DeviceBatch:
    """A host batch as tensors on the learner's device: the same memory on the CPU, one resident copy on a GPU.

    host: the batch itself.
    """

    def __init__(self, batch: Trajectory, model: Model, device: torch.device, autocast: Autocast):
        self.host = batch
        self._host = {name: torch.from_numpy(array) for name, array in batch.items()}
        self._on_host = device.type == "cpu"
        self._fields = self._host if self._on_host else {n: t.to(device) for n, t in self._host.items()}
        self._autocast = autocast
        self._age = ages(self._fields["step_type"])  # it stays in its memory, like the fields
        observations = {name: self._fields[name] for name in batch.layout.specs.observation}
        self._observe = observe_with(observations, self._age, model.frame_stack)
        self._parts = model, device, autocast

    def of(self, other: Trajectory) -> DeviceBatch:
        """Another batch of the same specs, for the same model."""
        return DeviceBatch(other, *self._parts)

    def load(self, progress: float, random: np.random.Generator, lag: int = 0) -> Batch:
        """The batch as it is now, on the device."""
        if not self._on_host:
            for name, tensor in self._fields.items():
                tensor.copy_(self._host[name], non_blocking=True)
        self._age.copy_(ages(self._fields["step_type"]))
        resident = None if self._on_host else self
        return Batch(self._fields, progress, random, self._observe, self._autocast, lag=lag, resident=resident)


def autocast_for(device: torch.device, precision: str) -> Autocast:
    """The context of forward passes in this precision."""
    if precision == "fp32":
        return nullcontext
    return partial(torch.autocast, device.type, dtype=torch.bfloat16)


def compile_model(model: Model, **settings: Any) -> None:
    """Let torch compile the model where it is first used: fewer kernels. Where that fails, it warns and runs as it is.

    settings: of `torch.compile`.
    """
    torch._dynamo.config.suppress_errors = True
    model.compile(**settings)


def choose_precision(requested: str, model: Model, specs: Specs, device: torch.device) -> str:
    """ "fp32" or "bf16"; with "auto", bf16 where a check finds it correct and at least 1.2 times faster."""
    if requested not in ("auto", "fp32", "bf16"):
        raise UserError(f"precision={requested!r}: choose auto, fp32 or bf16")
    if requested != "auto":
        return requested
    if is_small(model) or not has_bfloat16(device):
        return "fp32"
    probe = model.to(device)
    inputs = sample_inputs(probe, specs, PROBE_ROWS[device.type], device)
    seconds, outputs = dict.fromkeys(("fp32", "bf16"), float("inf")), {}
    with one_thread():
        for _ in range(4):  # taken in turn, the fastest counts: other work on the machine must not decide
            for precision in seconds:
                spent, outputs[precision] = time_pass(probe, inputs, autocast_for(device, precision))
                seconds[precision] = min(seconds[precision], spent)
    probe.zero_grad(set_to_none=True)
    scale = outputs["fp32"].abs().max().clamp(min=1e-3)
    error = float((outputs["bf16"] - outputs["fp32"]).abs().max() / scale)
    correct = bool(torch.isfinite(outputs["bf16"]).all()) and error < 0.1
    return "bf16" if correct and seconds["fp32"] > 1.2 * seconds["bf16"] else "fp32"


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch's operations in one thread: several would wait for each other wherever a core has other work to do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16 (a CPU that only emulates it is no gain)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def sample_inputs(model: Model, specs: Specs, rows: int, device: torch.device) -> dict[str, Tensor]:
    """Random model inputs {field: [rows, (k,) ...]}."""
    inputs, generator = {}, np.random.default_rng(0)
    for name, spec in specs.observation.items():
        shape = (rows, *((model.frame_stack,) if model.frame_stack > 1 else ()), *spec.shape)
        high = spec.num_values or (256 if spec.dtype == "uint8" else 2)
        values = generator.integers(0, high, shape) if spec.is_integer else generator.standard_normal(shape)
        inputs[name] = torch.from_numpy(values.astype(spec.dtype)).to(device)
    return inputs


def time_pass(model: Model, inputs: dict[str, Tensor], autocast: Autocast) -> tuple[float, Tensor]:
    """Seconds of a forward and backward pass, and its outputs [rows, A + 1]: action parameters and value."""
    rows, device = next((len(tensor), tensor.device) for tensor in inputs.values())
    step_type = torch.ones(rows, dtype=torch.uint8, device=device)
    core = torch.zeros(rows, model.core_size, device=device)
    start = time.perf_counter()
    with autocast():
        output, _ = model(inputs, step_type, core)
    (output.value.float().sum() + output.parameters.float().square().sum()).backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    return seconds, torch.cat([output.parameters.detach().float(), output.value.detach().float()[:, None]], 1)
