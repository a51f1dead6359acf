"""PPO: proximal policy optimisation with a clipped objective (Schulman et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpirl.algorithms.base import Algorithm, Batch
from mpirl.algorithms.fitting import (
    adam,
    check,
    check_life_loss,
    check_model,
    descend,
    evaluated,
    finite,
    forward,
    minibatches,
    normalized,
    position,
    quality,
    set_learning_rate,
    slots,
)
from mpirl.algorithms.graphs import Graphs, Number
from mpirl.algorithms.returns import as_learned, gae, vtrace
from mpirl.errors import UserError
from mpirl.models.base import Model
from mpirl.specs import ArraySpec, Specs

PER_MINIBATCH = ("policy_gradient_loss", "value_loss", "entropy_loss", "loss", "clip_fraction", "approx_kl")


@dataclass(frozen=True)
class Steps:
    """The true steps of a batch, [M] each; `position` is lane * (T + 1) + t.

    log_prob: of the policy that the ratio is to; weight: of the step in the policy's loss, that policy's probability of the
    action over that of the one that acted, at most 1.
    """

    position: Tensor
    action: Tensor
    log_prob: Tensor
    weight: Tensor
    value: Tensor
    advantage: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.position)

    @property
    def columns(self) -> list[Tensor]:
        return [getattr(self, name) for name in self.__dataclass_fields__]

    def take(self, index: Tensor) -> Steps:
        return Steps(*(column.index_select(0, index) for column in self.columns))


class PPO(Algorithm):
    """Needs the value of every observation. Statistics have the names and meanings of Stable-Baselines3.

    clip_value: how far a value may move in one update, None for any. target_kl: the update ends at 1.5 times this.
    reward_clip: learn from rewards clipped to [-reward_clip, reward_clip]. life_loss: losing a life counts as
    termination for learning; the emulator must declare the extra `lives`. cuda_graph: on a GPU, record the gradient step once
    and launch it whole (not with target_kl, which looks at every step's statistics).

    correction: "none" takes advantages and targets from the recorded values, and ratios to the policy that acted. "vtrace"
    takes V-trace's advantages and targets with gae_lambda, from the policy before the update by one more forward pass; it is
    also what ratios are to, so that an update may move as far from it as without lag, and steps are weighed with V-trace's
    rho (the decoupled objective of Hilton et al. 2022, "Batch size-invariance for policy optimization", with the
    weight clipped). "auto" is "vtrace" for batches that older weights collected, else "none".
    """

    def __init__(
        self,
        model: Model,
        specs: Specs,
        learning_rate: float = 2.5e-4,
        anneal_learning_rate: bool = True,
        epochs: int = 4,
        minibatch_size: int = 256,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float = 0.1,
        anneal_clip_range: bool = False,
        value_coefficient: float = 0.5,
        entropy_coefficient: float = 0.01,
        max_grad_norm: float = 0.5,
        normalize_advantage: bool = True,
        clip_value: float | None = None,
        target_kl: float | None = None,
        reward_clip: float | None = None,
        life_loss: bool = False,
        adam_epsilon: float = 1e-5,
        correction: str = "auto",
        cuda_graph: bool = True,
    ):
        positive = dict(learning_rate=learning_rate, epochs=epochs, clip_range=clip_range, max_grad_norm=max_grad_norm)
        positive |= dict(clip_value=clip_value, target_kl=target_kl, reward_clip=reward_clip, adam_epsilon=adam_epsilon)
        check({k: v for k, v in positive.items() if v is not None}, lambda x: x > 0, "must be more than 0")
        check(dict(minibatch_size=minibatch_size), lambda x: x >= 2, "must be at least 2")
        check(dict(epochs=epochs, minibatch_size=minibatch_size), lambda x: float(x).is_integer(), "must be a whole number")
        check(dict(gamma=gamma, gae_lambda=gae_lambda), lambda x: 0 <= x <= 1, "must be from 0 to 1")
        check(dict(value_coefficient=value_coefficient), lambda x: x >= 0, "must not be negative")
        check(dict(entropy_coefficient=entropy_coefficient), lambda x: x >= 0, "must not be negative")
        if correction not in ("auto", "none", "vtrace"):
            raise UserError(f"algorithm.correction={correction!r}: choose auto, none or vtrace")
        check_life_loss(life_loss, specs)
        check_model(model, self)
        self.model = model
        self.learning_rate, self.anneal_learning_rate = learning_rate, anneal_learning_rate
        self.epochs, self.minibatch_size = int(epochs), int(minibatch_size)
        self.gamma, self.gae_lambda = gamma, gae_lambda
        self.clip_range, self.anneal_clip_range = clip_range, anneal_clip_range
        self.value_coefficient, self.entropy_coefficient = value_coefficient, entropy_coefficient
        self.max_grad_norm, self.normalize_advantage = max_grad_norm, normalize_advantage
        self.clip_value, self.target_kl = clip_value, target_kl
        self.reward_clip, self.life_loss, self.correction, self.cuda_graph = reward_clip, life_loss, correction, cuda_graph
        self.optimizer = adam(model, learning_rate, adam_epsilon)
        self._graphs = Graphs(self.optimizer)
        self.n_updates = 0

    @staticmethod
    def extras(specs: Specs) -> dict[str, ArraySpec]:
        return {"value": ArraySpec((), "float32")}

    def learn(self, batch: Batch) -> dict[str, float]:
        remaining = 1.0 - batch.progress
        learning_rate = self.learning_rate * (remaining if self.anneal_learning_rate else 1.0)
        clip_range = self.clip_range * (remaining if self.anneal_clip_range else 1.0)
        set_learning_rate(self.optimizer, learning_rate)
        steps = self.prepare(batch)
        statistics = {"learned": len(steps), "learning_rate": learning_rate, "clip_range": clip_range}
        if self.clip_value is not None:
            statistics["clip_range_vf"] = self.clip_value
        if len(steps):
            statistics |= self._fit(batch, steps, clip_range)
        return statistics | {"n_updates": self.n_updates}

    def prepare(self, batch: Batch) -> Steps:
        """The true steps of the batch, with advantages and value targets."""
        slot = slots(batch)
        columns = (batch.fields["action"], *self.estimates(batch))
        return Steps(position(batch, slot), *(column.flatten(0, 1).index_select(0, slot) for column in columns))

    def estimates(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Log-probabilities and weights, values before the update, advantages and value targets, [N, T] each."""
        reward, discount = as_learned(batch.fields, self.reward_clip, self.life_loss)
        value, log_prob, step_type = (batch.fields[name] for name in ("value", "log_prob", "step_type"))
        if self.correction == "none" or (self.correction == "auto" and not batch.lag):
            advantage = gae(reward, discount, value, step_type, self.gamma, self.gae_lambda)
            return log_prob, torch.ones_like(log_prob), value[:, :-1], advantage, advantage + value[:, :-1]
        value, present = self.present(batch)
        traced = vtrace(present - log_prob, reward, discount, value, step_type, self.gamma, self.gae_lambda)
        return present, traced.rho, value[:, :-1], traced.advantage, traced.target

    @torch.no_grad()
    def present(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The present policy's values [N, T+1] of all observations and log-probabilities [N, T] of all actions."""
        shape, action = batch.fields["step_type"].shape, batch.fields["action"]
        output = evaluated(self.model, batch, torch.arange(shape.numel(), device=action.device))
        parameters = output.parameters.view(*shape, -1)[:, :-1].flatten(0, 1)
        log_prob = self.model.distribution.log_prob(parameters, action.flatten(0, 1))
        return output.value.view(shape), log_prob.view(action.shape[:2])

    def loss(self, batch: Batch, part: Steps, clip_range: Number) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of a minibatch, its statistics [PER_MINIBATCH], and the action parameters [B, A]."""
        output = forward(self.model, batch, part.position)
        distribution = self.model.distribution
        advantage = normalized(part.advantage) if self.normalize_advantage else part.advantage
        log_ratio = distribution.log_prob(output.parameters, part.action) - part.log_prob
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
        policy_loss = -(part.weight * torch.min(advantage * ratio, advantage * clipped)).mean()
        value = output.value
        if self.clip_value is not None:
            value = part.value + (value - part.value).clamp(-self.clip_value, self.clip_value)
        value_loss = nn.functional.mse_loss(value, part.target)
        entropy_loss = -distribution.entropy(output.parameters).mean()
        loss = policy_loss + self.entropy_coefficient * entropy_loss + self.value_coefficient * value_loss
        with torch.no_grad():
            clip_fraction = ((ratio - 1).abs() > clip_range).float().mean()
            approx_kl = ((ratio - 1) - log_ratio).mean()
            statistics = torch.stack([policy_loss, value_loss, entropy_loss, loss, clip_fraction, approx_kl])
        return loss, statistics, output.parameters.detach()

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "n_updates": self.n_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self._graphs = Graphs(self.optimizer)  # what it keeps has moved
        self.n_updates = state["n_updates"]

    def _fit(self, batch: Batch, steps: Steps, clip_range: float) -> dict[str, float]:
        """Run the epochs; return the statistics of the update."""
        rows: list[Tensor] = []
        descend_on = self._descender(batch, steps, clip_range)
        for _ in range(self.epochs):
            epoch_start = len(rows)
            for index in minibatches(batch.random, len(steps), self.minibatch_size, steps.position.device):
                row, parameters, is_far = descend_on(index)
                rows.append(row)
                if is_far:
                    break
            self.n_updates += 1
            if is_far:
                break
        extra = quality(self.model, steps.value, steps.target, parameters)
        numbers = torch.cat([torch.stack(rows).flatten(), torch.stack([*extra.values()])]).tolist()  # the one wait for the device
        per_minibatch = np.reshape(numbers[: -len(extra)], (len(rows), -1))
        return report(per_minibatch, epoch_start) | dict(zip(extra, numbers[-len(extra) :]))

    def _descender(self, batch: Batch, steps: Steps, clip_range: float) -> Callable[[Tensor], tuple[Tensor, Tensor, bool]]:
        """`_descend` on minibatches of the steps."""
        descend_on = partial(self._descend, batch)
        if not self.cuda_graph or self.target_kl is not None or batch.resident is None:
            return partial(descend_on, steps.columns, [clip_range])
        step, most = lambda *given: descend_on(*given)[:2], batch.num_lanes * batch.num_steps
        run = self._graphs.begin(step, batch.resident, steps.columns, [clip_range], most, self.minibatch_size)
        return lambda index: (*run(index), False)

    def _descend(
        self, batch: Batch, columns: Sequence[Tensor], numbers: Sequence[Number], index: Tensor
    ) -> tuple[Tensor, Tensor, bool]:
        """The statistics and action parameters of a minibatch int64 [B] of the steps, and whether the policy has moved too far;
        if it has not, after a gradient step.
        """
        loss, row, parameters = self.loss(batch, Steps(*columns).take(index), *numbers)
        is_far = self.target_kl is not None and bool(row[-1] > 1.5 * self.target_kl)
        if not is_far:
            descend(loss, self.optimizer, self.max_grad_norm)
        return row, parameters, is_far


def report(rows: np.ndarray, last_epoch: int) -> dict[str, float]:
    """Statistics [minibatches, PER_MINIBATCH] to Stable-Baselines3's: `loss` is the last, approx_kl the last epoch's mean."""
    mean = finite(dict(zip(PER_MINIBATCH, rows.mean(0).tolist())))
    mean["loss"] = float(rows[-1, PER_MINIBATCH.index("loss")])
    mean["approx_kl"] = float(rows[last_epoch:, PER_MINIBATCH.index("approx_kl")].mean())
    return mean
