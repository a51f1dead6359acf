"""DQN: deep Q-learning from a replay buffer (Mnih et al. 2015), with its usual refinements as options."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpirl.algorithms.base import Algorithm, Batch
from mpirl.algorithms.buffer import ReplayBuffer, Transitions
from mpirl.algorithms.fitting import adam, check, check_life_loss, check_model, descend, finite, set_learning_rate
from mpirl.algorithms.returns import as_learned
from mpirl.errors import UserError
from mpirl.models.base import Model
from mpirl.specs import Specs


class DQN(Algorithm):
    """Takes every batch into a replay buffer, and descends on minibatches drawn from it.

    A step counts as learned when it has been taken into the buffer, which every true step is; how often it is then drawn
    is chance. train_ratio: minibatches per true step, once learning_starts steps are in the buffer. n_step: rewards in a
    target. double: the online network chooses the action whose value the target network tells (van Hasselt et al. 2016).
    dueling: see models/q.py. target_every: minibatches between copies to the target network. exploration_fraction: the share
    of the run over which epsilon falls from 1 to exploration_final. priority_exponent: 0 draws uniformly, more by error
    (Schaul et al. 2016); priority_beta rises to 1 over the run. reward_clip, life_loss: as in PPO.

    The buffer is no part of the state: at a resume it is filled from the archive, with equal priorities, or where there is
    none from play: then learning rests until learning_starts steps are there again.
    """

    def __init__(
        self,
        model: Model,
        specs: Specs,
        learning_rate: float = 1e-4,
        anneal_learning_rate: bool = False,
        minibatch_size: int = 32,
        train_ratio: float = 0.25,
        buffer_size: int = 100_000,
        buffer_device: str = "cpu",
        learning_starts: int = 1000,
        gamma: float = 0.99,
        n_step: int = 1,
        double: bool = True,
        dueling: bool = False,
        target_every: int = 1000,
        exploration_fraction: float = 0.1,
        exploration_final: float = 0.05,
        priority_exponent: float = 0.0,
        priority_beta: float = 0.4,
        huber_delta: float = 1.0,
        max_grad_norm: float = 10.0,
        reward_clip: float | None = None,
        life_loss: bool = False,
        adam_epsilon: float = 1e-8,
    ):
        positive = dict(learning_rate=learning_rate, train_ratio=train_ratio, max_grad_norm=max_grad_norm)
        positive |= dict(huber_delta=huber_delta, adam_epsilon=adam_epsilon)
        positive |= {} if reward_clip is None else dict(reward_clip=reward_clip)
        check(positive, lambda x: x > 0, "must be more than 0")
        whole = dict(minibatch_size=minibatch_size, n_step=n_step, target_every=target_every, learning_starts=learning_starts)
        check(whole, lambda x: x >= 1, "must be at least 1")
        shares = dict(gamma=gamma, exploration_fraction=exploration_fraction, exploration_final=exploration_final)
        shares |= dict(priority_exponent=priority_exponent, priority_beta=priority_beta)
        check(shares, lambda x: 0 <= x <= 1, "must be from 0 to 1")
        if learning_starts >= buffer_size:
            raise UserError(f"algorithm.learning_starts={learning_starts} must be below algorithm.buffer_size={buffer_size}")
        check_life_loss(life_loss, specs)
        if not hasattr(model.distribution, "values"):
            raise UserError(f"DQN needs action values, which {type(model).__name__} has not: wrap it in mpirl.models.q")
        check_model(model, self)
        self.model, self.specs = model, specs
        self.target = copy.deepcopy(model).requires_grad_(False)
        self.learning_rate, self.anneal_learning_rate = learning_rate, anneal_learning_rate
        self.minibatch_size, self.train_ratio = minibatch_size, train_ratio
        self.learning_starts, self.double, self.target_every = learning_starts, double, target_every
        self.exploration_fraction, self.exploration_final = exploration_fraction, exploration_final
        self.priority_beta, self.huber_delta, self.max_grad_norm = priority_beta, huber_delta, max_grad_norm
        self.reward_clip, self.life_loss = reward_clip, life_loss
        self.replay_size = buffer_size
        frames = dict(frame_stack=model.frame_stack, device=buffer_device)
        self.buffer = ReplayBuffer(
            specs.observation, buffer_size, n_step=n_step, gamma=gamma, exponent=priority_exponent, **frames
        )
        self.optimizer = adam(model, learning_rate, adam_epsilon)
        self.n_updates = 0
        self.due = 0.0  # minibatches that the steps so far have earned and that were not yet drawn

    @staticmethod
    def model_node(model: Mapping[str, Any], settings: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"_target_": "mpirl.models.q.q_network", "network": model, "dueling": settings.get("dueling", False)}

    def learn(self, batch: Batch) -> dict[str, float]:
        learning_rate = self.learning_rate * (1.0 - batch.progress if self.anneal_learning_rate else 1.0)
        set_learning_rate(self.optimizer, learning_rate)
        self._take(batch)
        num_steps = int(batch.is_step.sum())
        statistics: dict[str, float] = {}
        if self.buffer.num_steps >= self.learning_starts and self.buffer.is_ready:
            self.due += self.train_ratio * num_steps
            statistics = self._fit(batch)
        explored = min(1.0, batch.progress / self.exploration_fraction) if self.exploration_fraction else 1.0
        epsilon = 1.0 + explored * (self.exploration_final - 1.0)
        self.model.epsilon.fill_(epsilon)
        statistics |= {"exploration_rate": epsilon, "learning_rate": learning_rate, "buffer_size": len(self.buffer)}
        return {"learned": num_steps, "n_updates": self.n_updates, **statistics}

    def refill(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            self._take(batch)

    def loss(self, batch: Batch, drawn: Transitions) -> tuple[Tensor, Tensor, Tensor]:
        """The unweighted losses [B] of drawn transitions, their errors [B], and the values [B] of their actions."""
        returns, factor, action = (self._tensor(column) for column in (drawn.returns, drawn.factor, drawn.action))
        with torch.no_grad():
            observation, step_type = self._observe(drawn.next)
            following = self._values(batch, self.target, observation, step_type)
            chooser = self._values(batch, self.model, observation, step_type) if self.double else following
            target = returns + factor * following.gather(1, chooser.argmax(1, keepdim=True)).squeeze(1)
        value = self._values(batch, self.model, *self._observe(drawn.rows))
        value = value.gather(1, action.long().unsqueeze(1)).squeeze(1)
        loss = nn.functional.huber_loss(value, target, reduction="none", delta=self.huber_delta)
        return loss, (target - value).detach(), value.detach()

    def state_dict(self) -> dict[str, Any]:
        counters = {"n_updates": self.n_updates, "due": self.due, "largest_priority": self.buffer.largest}
        return {"optimizer": self.optimizer.state_dict(), "target": dict(self.target.state_dict()), **counters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.target.load_state_dict(state["target"])
        self.n_updates, self.due, self.buffer.largest = state["n_updates"], state["due"], state["largest_priority"]

    def _take(self, batch: Batch) -> None:
        """Into the buffer, as seen by the learner: rewards clipped, a lost life the end."""
        reward, discount = as_learned(batch.fields, self.reward_clip, self.life_loss)
        self.buffer.append({**batch.fields, "reward": reward, "discount": discount})

    def _fit(self, batch: Batch) -> dict[str, float]:
        """Draw and descend on the minibatches that are due; the means of their statistics."""
        rows: list[Tensor] = []
        beta = self.priority_beta + batch.progress * (1 - self.priority_beta)
        while self.due > 1 - 1e-6:  # fractions add up with rounding errors
            self.due -= 1
            if self.n_updates % self.target_every == 0:
                self.target.load_state_dict(self.model.state_dict())
            drawn = self.buffer.draw(self.minibatch_size, batch.random)
            loss, error, value = self.loss(batch, drawn)
            if self.buffer.exponent:
                loss = loss * self._tensor(self.buffer.weights(drawn.rows, beta))
                self.buffer.prioritise(drawn.rows, error.cpu().numpy())
            descend(loss.mean(), self.optimizer, self.max_grad_norm)
            rows.append(torch.stack([loss.detach().mean(), error.abs().mean(), value.mean()]))
            self.n_updates += 1
        means = torch.stack(rows).mean(0).tolist() if rows else []  # the one wait for the device if draws are uniform
        return finite(dict(zip(("loss", "td_error", "value"), means)))

    def _observe(self, rows: np.ndarray) -> tuple[dict[str, Tensor], Tensor]:
        """Observations and step types of rows of the buffer, on the model's device."""
        observation = {name: frames.to(self.model.epsilon.device) for name, frames in self.buffer.observe(rows).items()}
        return observation, self._tensor(self.buffer.step_types(rows))

    def _values(self, batch: Batch, model: Model, observation: Mapping[str, Tensor], step_type: Tensor) -> Tensor:
        """Of all actions, [B, A]."""
        with batch.autocast():
            output, _ = model(observation, step_type, torch.zeros(len(step_type), 0, device=step_type.device))
        return self.model.distribution.values(output.parameters)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.model.epsilon.device)
