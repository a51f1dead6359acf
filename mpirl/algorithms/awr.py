"""AWR: advantage-weighted regression (Peng et al. 2019), offline or online; DigiRL's two-level filtering as an option."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpirl.algorithms.base import Batch, OfflineAlgorithm
from mpirl.algorithms.bc import likelihood
from mpirl.algorithms.fitting import (
    adam,
    check,
    check_life_loss,
    check_model,
    evaluated,
    fit,
    forward,
    normalized,
    position,
    set_learning_rate,
    slots,
)
from mpirl.algorithms.returns import advantage_weights, as_learned, explained_variance, gae, step_advantage
from mpirl.algorithms.two_level import TaskFilter
from mpirl.errors import UserError
from mpirl.models.base import Model
from mpirl.specs import Specs

Steps = Mapping[str, Tensor]


class AWR(OfflineAlgorithm):
    """The value learns TD(lambda) returns, the policy the recorded actions, each weighed by exp(advantage / beta).

    Returns bootstrap with the present value at truncations and at the end of a lane's window. normalize_advantage: to
    mean 0 and deviation 1 over the batch, so that beta is in deviations; else beta is in units of return.

    two_level: instead of weights, DigiRL's hard filters (Bai et al. 2024): the policy clones steps of the episodes in the
    top `task_top` of return minus value at the first observation, as far as their step advantage exceeds step_threshold
    (the paper's, for a single success of reward 1, is 1 / horizon). The value then learns Monte Carlo returns.
    """

    learns_online = True

    def __init__(
        self,
        model: Model,
        specs: Specs,
        learning_rate: float = 5e-4,
        anneal_learning_rate: bool = True,
        epochs: int = 1,
        minibatch_size: int = 256,
        gamma: float = 0.99,
        td_lambda: float = 0.95,
        beta: float = 1.0,
        weight_clip: float = 20.0,
        normalize_advantage: bool = True,
        value_coefficient: float = 0.5,
        max_grad_norm: float = 1.0,
        reward_clip: float | None = None,
        life_loss: bool = False,
        two_level: bool = False,
        task_top: float = 0.1,
        step_lambda: float = 0.5,
        step_threshold: float = 0.0,
        adam_epsilon: float = 1e-5,
    ):
        positive = dict(learning_rate=learning_rate, epochs=epochs, beta=beta, max_grad_norm=max_grad_norm)
        positive |= dict(value_coefficient=value_coefficient, adam_epsilon=adam_epsilon)
        positive |= {} if reward_clip is None else dict(reward_clip=reward_clip)
        check(positive, lambda x: x > 0, "must be more than 0")
        check(dict(minibatch_size=minibatch_size), lambda x: x >= 2, "must be at least 2")
        check(dict(weight_clip=weight_clip), lambda x: x >= 1, "must be at least 1")
        check(dict(gamma=gamma, td_lambda=td_lambda, step_lambda=step_lambda), lambda x: 0 <= x <= 1, "must be from 0 to 1")
        check(dict(task_top=task_top), lambda x: 0 < x <= 1, "must be more than 0 and at most 1")
        check_life_loss(life_loss, specs)
        check_model(model, self)
        self.model = model
        self.learning_rate, self.anneal_learning_rate = learning_rate, anneal_learning_rate
        self.epochs, self.minibatch_size, self.max_grad_norm = epochs, minibatch_size, max_grad_norm
        self.gamma, self.td_lambda, self.beta, self.weight_clip = gamma, td_lambda, beta, weight_clip
        self.normalize_advantage, self.value_coefficient = normalize_advantage, value_coefficient
        self.reward_clip, self.life_loss = reward_clip, life_loss
        self.step_lambda, self.step_threshold = step_lambda, step_threshold
        self.tasks = TaskFilter(task_top) if two_level else None
        self.optimizer = adam(model, learning_rate, adam_epsilon)
        self.n_updates = 0

    def choose(self, episodes: Mapping[str, np.ndarray]) -> np.ndarray | None:
        return self.tasks.begin(episodes) if self.tasks else None

    def learn(self, batch: Batch) -> dict[str, float]:
        learning_rate = self.learning_rate * (1.0 - batch.progress if self.anneal_learning_rate else 1.0)
        set_learning_rate(self.optimizer, learning_rate)
        steps, statistics = self.prepare(batch)
        settings = dict(epochs=self.epochs, minibatch_size=self.minibatch_size, max_grad_norm=self.max_grad_norm)
        statistics |= fit(batch, steps, self.loss, self.optimizer, **settings)
        self.n_updates += 1
        return {"learned": len(steps["position"]), "learning_rate": learning_rate, "n_updates": self.n_updates, **statistics}

    def validate(self, batch: Batch) -> dict[str, float]:
        slot = slots(batch)
        if not len(slot):
            return {}
        value, target, _ = self.advantages(batch)
        action = batch.fields["action"].flatten(0, 1).index_select(0, slot)
        statistics = likelihood(self.model, evaluated(self.model, batch, position(batch, slot)), action)
        error = (value[:, :-1] - target).flatten().index_select(0, slot)
        return {name: float(number) for name, number in statistics.items()} | {"value_loss": float(error.square().mean())}

    def prepare(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The chosen steps, [M] each: position, action, value target and weight; and statistics of them."""
        slot = slots(batch)
        value, target, advantage = self.advantages(batch)
        of_steps = lambda column: column.flatten(0, 1).index_select(0, slot)
        steps = {"position": position(batch, slot), "action": of_steps(batch.fields["action"]), "target": of_steps(target)}
        steps["weight"] = self._weights(batch, slot, value, of_steps(advantage))
        if len(slot) < 2:
            return steps, {}
        explained = explained_variance(of_steps(value[:, :-1]), steps["target"])
        return steps, {"explained_variance": float(explained), "weight": float(steps["weight"].mean())}

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Values [N, T+1], value targets [N, T] and advantages [N, T], meaningful where steps are chosen."""
        fields = batch.fields
        reward, discount = as_learned(fields, self.reward_clip, self.life_loss)
        value = self._values(batch)
        if self.tasks is None:
            advantage = gae(reward, discount, value, fields["step_type"], self.gamma, self.td_lambda)
            return value, advantage + value[:, :-1], advantage
        to_go = self._finished(fields, "return_to_go"), fields["steps_to_go"]
        return value, to_go[0][:, :-1], step_advantage(reward, discount, value, *to_go, self.gamma, self.step_lambda)

    def loss(self, batch: Batch, steps: Steps) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a minibatch and its statistics."""
        output = forward(self.model, batch, steps["position"])
        log_prob = self.model.distribution.log_prob(output.parameters, steps["action"])
        policy_loss = -(steps["weight"] * log_prob).mean()
        value_loss = nn.functional.mse_loss(output.value, steps["target"])
        statistics = {"policy_loss": policy_loss, "value_loss": value_loss, **likelihood(self.model, output, steps["action"])}
        return policy_loss + self.value_coefficient * value_loss, statistics

    def state_dict(self) -> dict[str, Any]:
        tasks = {"tasks": self.tasks.state_dict()} if self.tasks else {}
        return {"optimizer": self.optimizer.state_dict(), "n_updates": self.n_updates, **tasks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.n_updates = state["n_updates"]
        if self.tasks and "tasks" in state:
            self.tasks.load_state_dict(state["tasks"])

    def _values(self, batch: Batch) -> Tensor:
        """The model's values [N, T+1]; 0 in lanes without chosen steps."""
        step_type = batch.fields["step_type"]
        lanes = batch.is_step.any(1).nonzero().squeeze(1)
        value = torch.zeros(step_type.shape, device=step_type.device)
        if len(lanes):
            num_observations = step_type.shape[1]
            positions = lanes[:, None] * num_observations + torch.arange(num_observations, device=lanes.device)
            value[lanes] = evaluated(self.model, batch, positions.flatten()).value.view(positions.shape)
        return value

    def _weights(self, batch: Batch, slot: Tensor, value: Tensor, advantage: Tensor) -> Tensor:
        """Of the policy's loss, for steps [M] with these advantages."""
        if self.tasks is None:
            if self.normalize_advantage:
                advantage = normalized(advantage)
            return advantage_weights(advantage, self.beta, self.weight_clip)
        row = self._finished(batch.fields, "row")
        begins = (batch.fields["step_type"][:, :-1] == 0) & batch.is_step  # [N, T]: chosen first observations
        surplus = (batch.fields["return_to_go"] - value)[:, :-1]
        self.tasks.update(row[:, :-1][begins].cpu().numpy(), surplus[begins].cpu().numpy())
        of_steps = row[:, :-1].flatten().index_select(0, slot)
        kept = torch.from_numpy(self.tasks.chosen()).to(slot.device)[of_steps]
        return (kept & (advantage > self.step_threshold)).float()

    @staticmethod
    def _finished(fields: Mapping[str, Tensor], name: str) -> Tensor:
        if name not in fields:
            raise UserError("algorithm.two_level=true needs whole episodes of an archive: use it with program=offline")
        return fields[name]
