"""The conformance kit of models and their action distributions, on synthetic observations."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mpirl.models.base import Distribution, Model
from mpirl.specs import ArraySpec, Specs, StepType

ROWS = 6
Fields = dict[str, Tensor]


def check_model(model: Model, specs: Specs) -> None:
    """See mpirl.testing.check_model."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        is_weight = isinstance(tensor, torch.nn.Parameter) or tensor.is_floating_point()
        assert not is_weight or tensor.dtype == torch.float32, f"{name} is {tensor.dtype}: weights travel as torch.float32"
    random = np.random.default_rng(0)
    observation = {name: sample_observations(spec, (ROWS, *_stack(model)), random) for name, spec in specs.observation.items()}
    step_type = torch.tensor([StepType.FIRST, StepType.MID, StepType.LAST] * (ROWS // 3), dtype=torch.uint8)
    _check_tensor(model.initial(ROWS), "initial(n)", (ROWS, model.core_size))
    core = torch.from_numpy(random.normal(size=(ROWS, model.core_size)).astype(np.float32))

    def forward(rows: list[int], core: Tensor = core, of: Model = model) -> dict[str, Tensor]:
        output, after = of({name: array[rows] for name, array in observation.items()}, step_type[rows], core[rows])
        return {"parameters": output.parameters, "value": output.value, "core": after}

    together = forward(list(range(ROWS)))
    _check_tensor(together["parameters"], "output.parameters", (ROWS, model.distribution.num_parameters))
    _check_tensor(together["value"], "output.value", (ROWS,))
    _check_tensor(together["core"], "the next core", (ROWS, model.core_size))
    _check_rows(together, forward)
    noisy = forward(list(range(ROWS)), torch.where((step_type == StepType.FIRST)[:, None], core + 1.0, core))
    _check_close(noisy, together, "the core before a FIRST observation has influence: zero it there")
    _check_gradients(model, together)
    _check_acting_copies(model, lambda of: forward(list(range(ROWS)), of=of))
    check_distribution(model.distribution, together["parameters"][0].detach(), specs.action)
    mild = torch.from_numpy(random.normal(size=(model.distribution.num_parameters,)).astype(np.float32) / 2)
    check_distribution(model.distribution, mild, specs.action)
    check_entropy(model.distribution, mild)


def _check_rows(together: Fields, forward: Callable[[list[int]], Fields]) -> None:
    for row in range(ROWS):
        alone = {name: array[0] for name, array in forward([row]).items()}
        message = f"row {row} comes out otherwise alone than in a batch: rows must not mix (batch norm, dropout?)"
        _check_close(alone, {name: array[row] for name, array in together.items()}, message)


def _check_gradients(model: Model, outputs: Fields) -> None:
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for name in ("parameters", "value"):
        gradients = torch.autograd.grad(outputs[name].sum(), weights, retain_graph=True, allow_unused=True)
        given = [gradient for gradient in gradients if gradient is not None]
        assert given, f"no gradient flows from output.{name} to the model's parameters"
        assert all(torch.isfinite(gradient).all() for gradient in given), f"gradients of output.{name} are not finite"


@torch.inference_mode()
def _check_acting_copies(model: Model, forward: Callable[[Model], Fields]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        acting = model.acting_copy(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            expected = forward(model)
        if acting is not model:
            _check_close(forward(acting), expected, f"acting_copy({dtype}) computes something else than the model")


def check_distribution(distribution: Distribution, parameters: Tensor, action: ArraySpec) -> None:
    """Check shapes and values of samples, mode, log-probabilities and entropies. parameters: [A]."""
    many = parameters.repeat(20_000, 1)
    noise = sample_noise(distribution, len(many))
    samples = distribution.sample(many, noise)
    assert torch.equal(samples, distribution.sample(many, noise)), "sample is no function of parameters and noise alone"
    for what, actions in (("sample", samples), ("mode", distribution.mode(many))):
        _check_tensor(actions, what, (len(many), *action.shape), getattr(torch, action.dtype))
        if action.is_discrete:
            assert 0 <= actions.min() and actions.max() < action.num_values, f"{what} leaves 0 .. {action.num_values - 1}"
    log_prob, entropy = distribution.log_prob(many, samples), distribution.entropy(many)
    _check_tensor(log_prob, "log_prob", (len(many),))
    _check_tensor(entropy, "entropy", (len(many),))
    at_mode = distribution.log_prob(many, distribution.mode(many))[0]
    assert log_prob.max() <= at_mode + 1e-4, "a sample is likelier than the mode"
    _check_lean(distribution, many, noise)


def _check_lean(distribution: Distribution, parameters: Tensor, noise: Tensor) -> None:
    choose = distribution.lean()
    if choose is None:
        return
    for expected, given in ((distribution.sample(parameters, noise), noise.numpy()), (distribution.mode(parameters), None)):
        action, log_prob = map(torch.from_numpy, choose(parameters.numpy(), given))
        _check_tensor(action, "lean()'s choice", tuple(expected.shape), expected.dtype)
        same = torch.isclose(action, expected, rtol=1e-3, atol=1e-4).reshape(len(action), -1).all(1)
        assert same.float().mean() > 0.999, "lean() chooses other actions than sample and mode"  # rounding moves borders
        right = torch.allclose(log_prob, distribution.log_prob(parameters, action), rtol=1e-3, atol=1e-4)
        assert right, "lean() gives other log-probabilities than log_prob"


def check_entropy(distribution: Distribution, parameters: Tensor) -> None:
    """Check that samples, their log-probabilities and the entropy belong together.

    parameters: [A], under which no action is rare; an average over samples says nothing about what they hardly meet.
    """
    many = parameters.repeat(20_000, 1)
    log_prob = distribution.log_prob(many, distribution.sample(many, sample_noise(distribution, len(many))))
    tolerance = 5 * log_prob.std().item() / math.sqrt(len(many)) + 1e-3
    mean, expected = -log_prob.mean().item(), distribution.entropy(many)[0].item()
    assert abs(mean - expected) < tolerance, f"-log_prob of samples is {mean:.4f} on average, entropy says {expected:.4f}"


def sample_noise(distribution: Distribution, rows: int) -> Tensor:
    random, size = np.random.default_rng(1), (rows, distribution.noise_size)
    kinds = {"uniform": random.random, "normal": random.standard_normal}
    assert distribution.noise_kind in kinds, f"noise_kind is {distribution.noise_kind!r}, must be 'uniform' or 'normal'"
    return torch.from_numpy(kinds[distribution.noise_kind](size).astype(np.float32))


def _stack(model: Model) -> tuple[int, ...]:
    return (model.frame_stack,) if model.frame_stack > 1 else ()


def sample_observations(spec: ArraySpec, leading: tuple[int, ...], random: np.random.Generator) -> Tensor:
    """Random values [*leading, *spec.shape] within the spec's bounds, -3 to 3 where it has none."""
    shape = (*leading, *spec.shape)
    if spec.is_discrete:
        return torch.from_numpy(random.integers(spec.num_values, size=shape).astype(spec.dtype))
    low, high = (-3.0 if spec.low is None else spec.low), (3.0 if spec.high is None else spec.high)
    if np.dtype(spec.dtype).kind in "ub":
        low = np.maximum(low, 0)
    low, high = np.clip(low, -1e3, 1e3), np.clip(high, -1e3, 1e3)
    return torch.from_numpy((low + (high - low) * random.random(shape)).astype(spec.dtype))


def _check_tensor(array: Tensor, what: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
    assert tuple(array.shape) == shape, f"{what} has shape {list(array.shape)}, must be {list(shape)}"
    assert array.dtype == dtype, f"{what} is {array.dtype}, must be {dtype}"
    assert torch.isfinite(array).all(), f"{what} has values that are not finite"


def _check_close(one: Fields, two: Fields, message: str) -> None:
    for name in one:
        assert torch.allclose(one[name].float(), two[name].float(), rtol=1e-3, atol=1e-4), f"{message}; {name} differs"
