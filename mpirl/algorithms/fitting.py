"""Fitting a model to chosen steps of a batch, minibatch by minibatch: what algorithms share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mpirl.algorithms.adam import Adam
from mpirl.algorithms.base import Batch
from mpirl.algorithms.returns import explained_variance
from mpirl.errors import UserError
from mpirl.models.base import Model, Output
from mpirl.specs import Specs

Columns = TypeVar("Columns", bound=Mapping[str, Tensor])
EVALUATED_AT_ONCE = 2048  # observations of a forward pass without gradient


def slots(batch: Batch) -> Tensor:
    """The chosen true steps as lane * T + t, int64 [M]."""
    return batch.is_step.flatten().nonzero().squeeze(1)


def position(batch: Batch, slot: Tensor) -> Tensor:
    """Slots lane * T + t as positions lane * (T + 1) + t, int64 [M]."""
    return slot + slot.div(batch.num_steps, rounding_mode="floor")


def forward(model: Model, batch: Batch, position: Tensor) -> Output:
    """The model's outputs for the observations at flat positions int64 [B]."""
    step_type = batch.fields["step_type"].flatten().index_select(0, position)
    with batch.autocast():
        output, _ = model(batch.observe(position), step_type, torch.zeros(len(position), 0, device=position.device))
    return output


@torch.no_grad()
def evaluated(model: Model, batch: Batch, position: Tensor) -> Output:
    """As `forward`, for any number of positions."""
    parts = [forward(model, batch, part) for part in position.split(EVALUATED_AT_ONCE)]
    return Output(*(torch.cat(column) for column in zip(*parts)))


def fit(
    batch: Batch,
    columns: Columns,
    loss: Callable[[Batch, Columns], tuple[Tensor, Mapping[str, Tensor]]],
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    minibatch_size: int,
    max_grad_norm: float,
) -> dict[str, float]:
    """Descend on the loss of shuffled minibatches; the mean of its statistics.

    columns: [M, ...] each, one row for a step. loss: (batch, rows of the columns) to a scalar and statistics.
    """
    rows: list[Tensor] = []
    names: list[str] = []
    num_steps = len(next(iter(columns.values())))
    for _ in range(epochs if num_steps else 0):
        for chosen in minibatches(batch.random, num_steps, minibatch_size, batch.fields["step_type"].device):
            value, statistics = loss(batch, {name: column.index_select(0, chosen) for name, column in columns.items()})
            descend(value, optimizer, max_grad_norm)
            names = ["loss", *statistics]
            rows.append(torch.stack([value.detach(), *(number.detach() for number in statistics.values())]))
    means = torch.stack(rows).mean(0).tolist() if rows else []  # the one wait for the device
    return finite(dict(zip(names, means)))


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> None:
    """One step down the gradient of a loss, clipped to a norm."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    clip([parameter.grad for parameter in parameters if parameter.grad is not None], max_grad_norm)
    optimizer.step()


def clip(gradients: list[Tensor], max_norm: float) -> None:
    """As `nn.utils.clip_grad_norm_`, but an infinite or nan element makes all nan: then so is every output, and it is seen."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0) + (norm - norm))


def minibatches(
    random: np.random.Generator, count: int, size: int, device: torch.device = torch.device("cpu")
) -> Iterator[Tensor]:
    """Shuffled indices int64 of `count` steps in parts of `size`; what is left is a part too, but a single step joins the last.

    They go to the device at once, without waiting for it.
    """
    order = torch.from_numpy(random.permutation(count))
    if device.type == "cuda":
        order = order.pin_memory().to(device, non_blocking=True)
    start = 0
    while start < count:
        end = count if count - start <= size + 1 else start + size
        yield order[start:end]
        start = end


def quality(model: Model, value: Tensor, target: Tensor, parameters: Tensor) -> dict[str, Tensor]:
    """Statistics of values [M] before an update against their targets [M], and of its last action parameters [B, A]."""
    found = {"explained_variance": explained_variance(value, target)}
    if hasattr(model.distribution, "std"):
        found["std"] = model.distribution.std(parameters).mean()
    return found


def finite(statistics: dict[str, float]) -> dict[str, float]:
    """The statistics; FloatingPointError if training has diverged."""
    broken = [name for name, number in statistics.items() if not np.isfinite(number)]
    if broken:
        raise FloatingPointError(
            f"{', '.join(broken)} became infinite or nan, and so may the weights be: lower algorithm.learning_rate, "
            "bound the rewards (algorithm.reward_clip) or the emulator's observations, or train in float32 (precision=fp32)"
        )
    return statistics


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def check_model(model: Model, algorithm: Any) -> None:
    if model.core_size:
        name = type(algorithm).__name__
        raise UserError(f"{name} trains models without recurrent state, {type(model).__name__} has one: choose another model")


def check_life_loss(life_loss: bool, specs: Specs) -> None:
    if life_loss and "lives" not in specs.extras:
        raise UserError("algorithm.life_loss=True needs an emulator that declares the extra `lives`; set it to false")


def normalized(advantage: Tensor) -> Tensor:
    """Advantages [M] with mean 0 and deviation 1; a single one as it is."""
    return (advantage - advantage.mean()) / (advantage.std() + 1e-8) if len(advantage) > 1 else advantage


def adam(model: nn.Module, learning_rate: float, epsilon: float) -> torch.optim.Adam:
    """Adam, fused into one kernel where the parameters' device can."""
    try:
        return Adam(model.parameters(), lr=learning_rate, eps=epsilon, fused=True)
    except RuntimeError:
        return Adam(model.parameters(), lr=learning_rate, eps=epsilon)


def check(settings: dict[str, Any], holds: Any, mend: str) -> None:
    """A UserError for the first setting that is not a number or does not hold."""
    for key, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not holds(value):
            raise UserError(f"algorithm.{key}={value!r}: {mend}")
