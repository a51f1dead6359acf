"""IMPALA: an actor-critic that corrects with V-trace for the policy that acted (Espeholt et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
    finite,
    forward,
    normalized,
    quality,
    set_learning_rate,
)
from mpirl.algorithms.returns import VTrace, as_learned, vtrace
from mpirl.models.base import Model
from mpirl.specs import Specs

PER_MINIBATCH = ("policy_gradient_loss", "value_loss", "entropy_loss", "loss", "clip_fraction", "approx_kl", "rho")


@dataclass(frozen=True)
class Part:
    """A minibatch of n whole lanes. lane: int64 [n]. step: where its true steps are, int64 [M] as (row of lane) * T + t."""

    lane: Tensor
    step: Tensor

    def of_steps(self, column: Tensor) -> Tensor:
        """[n, T, ...] to [M, ...]."""
        return column.flatten(0, 1).index_select(0, self.step)


class IMPALA(Algorithm):
    """One pass over each batch; what was recorded of the policy that acted is the action's log-probability alone.

    minibatch_size: steps of a minibatch, which is made of whole lanes: the nearest number of them, at least one. Values,
    policy and V-trace's targets of a minibatch come from one forward pass. rho_clip bounds the importance weight of a step
    (it decides which policy's value is learned), c_clip how far later steps are credited (it decides how fast).
    normalize_advantage: to mean 0 and deviation 1 in each minibatch, before they are weighed; whole lanes vary less than
    shuffled steps, so it adds noise here.
    reward_clip, life_loss: as in PPO. Statistics have PPO's names; clip_fraction is the share of steps more than 1 %
    beyond rho_clip, rho the mean weight after clipping (1 where the policy itself acted), approx_kl the distance from the
    policy that acted.
    """

    def __init__(
        self,
        model: Model,
        specs: Specs,
        learning_rate: float = 5e-4,
        anneal_learning_rate: bool = True,
        minibatch_size: int = 256,
        gamma: float = 0.99,
        vtrace_lambda: float = 0.95,
        rho_clip: float = 1.0,
        c_clip: float = 1.0,
        value_coefficient: float = 0.5,
        entropy_coefficient: float = 0.01,
        max_grad_norm: float = 0.5,
        normalize_advantage: bool = False,
        reward_clip: float | None = None,
        life_loss: bool = False,
        adam_epsilon: float = 1e-5,
    ):
        positive = dict(learning_rate=learning_rate, rho_clip=rho_clip, c_clip=c_clip, max_grad_norm=max_grad_norm)
        positive |= dict(adam_epsilon=adam_epsilon) | ({} if reward_clip is None else dict(reward_clip=reward_clip))
        check(positive, lambda x: x > 0, "must be more than 0")
        check(dict(minibatch_size=minibatch_size), lambda x: x >= 1, "must be at least 1")
        check(dict(gamma=gamma, vtrace_lambda=vtrace_lambda), lambda x: 0 <= x <= 1, "must be from 0 to 1")
        coefficients = dict(value_coefficient=value_coefficient, entropy_coefficient=entropy_coefficient)
        check(coefficients, lambda x: x >= 0, "must not be negative")
        check_life_loss(life_loss, specs)
        check_model(model, self)
        self.model = model
        self.learning_rate, self.anneal_learning_rate = learning_rate, anneal_learning_rate
        self.minibatch_size, self.max_grad_norm = minibatch_size, max_grad_norm
        self.gamma, self.vtrace_lambda, self.rho_clip, self.c_clip = gamma, vtrace_lambda, rho_clip, c_clip
        self.value_coefficient, self.entropy_coefficient = value_coefficient, entropy_coefficient
        self.normalize_advantage = normalize_advantage
        self.reward_clip, self.life_loss = reward_clip, life_loss
        self.optimizer = adam(model, learning_rate, adam_epsilon)
        self.n_updates = 0

    def learn(self, batch: Batch) -> dict[str, float]:
        learning_rate = self.learning_rate * (1.0 - batch.progress if self.anneal_learning_rate else 1.0)
        set_learning_rate(self.optimizer, learning_rate)
        parts = list(self.minibatches(batch))
        statistics = {"learned": sum(len(part.step) for part in parts), "learning_rate": learning_rate}
        if parts:
            statistics |= self._fit(batch, parts)
            self.n_updates += 1
        return statistics | {"n_updates": self.n_updates}

    def minibatches(self, batch: Batch) -> Iterator[Part]:
        """Shuffled lanes in equal parts; one without true steps is in none."""
        is_step = batch.is_step
        device, is_step = is_step.device, is_step.cpu().numpy()
        lanes = batch.random.permutation(np.flatnonzero(is_step.any(1)))
        at_once = max(1, round(self.minibatch_size / batch.num_steps))
        for lane in np.array_split(lanes, -(-len(lanes) // at_once)) if len(lanes) else ():
            step = np.flatnonzero(is_step[lane])
            yield Part(torch.from_numpy(lane).to(device), torch.from_numpy(step).to(device))

    def loss(self, batch: Batch, part: Part) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """The loss of a minibatch, its statistics [PER_MINIBATCH], and its steps' values, targets [M] and parameters [M, A]."""
        num_observations = batch.num_steps + 1
        position = part.lane[:, None] * num_observations + torch.arange(num_observations, device=part.lane.device)
        output = forward(self.model, batch, position.flatten())
        value, distribution = output.value.view(position.shape), self.model.distribution
        parameters = output.parameters.view(*position.shape, -1)[:, :-1]
        action, behaviour = (batch.fields[name].index_select(0, part.lane) for name in ("action", "log_prob"))
        log_prob = distribution.log_prob(parameters.flatten(0, 1), action.flatten(0, 1)).view(behaviour.shape)
        log_rho = (log_prob - behaviour).detach()
        traced = VTrace(*(part.of_steps(column) for column in self.trace(batch, part, value.detach(), log_rho)))
        value, parameters, log_rho = part.of_steps(value[:, :-1]), part.of_steps(parameters), part.of_steps(log_rho)
        advantage = normalized(traced.advantage) if self.normalize_advantage else traced.advantage
        policy_loss = -(traced.rho * advantage * part.of_steps(log_prob)).mean()
        value_loss = nn.functional.mse_loss(value, traced.target)
        entropy_loss = -distribution.entropy(parameters).mean()
        loss = policy_loss + self.entropy_coefficient * entropy_loss + self.value_coefficient * value_loss
        importance = log_rho.exp()
        clip_fraction = (importance > 1.01 * self.rho_clip).float().mean()  # of equal policies, rounding puts half beyond 1
        approx_kl = (importance - 1 - log_rho).mean()
        row = [policy_loss, value_loss, entropy_loss, loss, clip_fraction, approx_kl, traced.rho.mean()]
        return loss, torch.stack(row).detach(), (value.detach(), traced.target, parameters.detach())

    def trace(self, batch: Batch, part: Part, value: Tensor, log_rho: Tensor) -> VTrace:
        """V-trace [n, T] of a minibatch, from its values [n, T+1] and log importances [n, T]."""
        names = ("reward", "discount", "step_type", *(["lives"] if self.life_loss else []))
        fields = {name: batch.fields[name].index_select(0, part.lane) for name in names}
        reward, discount = as_learned(fields, self.reward_clip, self.life_loss)
        step_type = fields["step_type"]
        clips = dict(rho_clip=self.rho_clip, c_clip=self.c_clip)
        return vtrace(log_rho, reward, discount, value, step_type, self.gamma, self.vtrace_lambda, **clips)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "n_updates": self.n_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.n_updates = state["n_updates"]

    def _fit(self, batch: Batch, parts: list[Part]) -> dict[str, float]:
        """Descend once on each minibatch; the means of the statistics."""
        rows, columns = [], []
        for part in parts:
            loss, row, of_steps = self.loss(batch, part)
            descend(loss, self.optimizer, self.max_grad_norm)
            rows.append(row)
            columns.append(of_steps)
        value, target, parameters = (torch.cat(column) for column in zip(*columns))
        extra = quality(self.model, value, target, parameters)
        numbers = torch.cat([torch.stack(rows).mean(0), torch.stack([*extra.values()])]).tolist()  # the one wait for the device
        return finite(dict(zip(PER_MINIBATCH, numbers))) | dict(zip(extra, numbers[len(PER_MINIBATCH) :]))
