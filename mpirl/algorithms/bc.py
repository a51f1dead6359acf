"""Behavioural cloning: maximum likelihood of the recorded actions, in all episodes or in those with the best returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpirl.algorithms.base import Batch, OfflineAlgorithm
from mpirl.algorithms.fitting import adam, check, check_model, evaluated, fit, forward, position, set_learning_rate, slots
from mpirl.models.base import Model, Output
from mpirl.specs import Specs


class BC(OfflineAlgorithm):
    """Makes the recorded actions likely. The value output is not trained.

    top: the share of every task's finished episodes, by return, that is cloned; 1 clones all, finished or not.
    """

    def __init__(
        self,
        model: Model,
        specs: Specs,
        top: float = 1.0,
        learning_rate: float = 5e-4,
        anneal_learning_rate: bool = True,
        epochs: int = 1,
        minibatch_size: int = 256,
        max_grad_norm: float = 1.0,
        adam_epsilon: float = 1e-5,
    ):
        positive = dict(learning_rate=learning_rate, epochs=epochs, max_grad_norm=max_grad_norm, adam_epsilon=adam_epsilon)
        check(positive, lambda x: x > 0, "must be more than 0")
        check(dict(minibatch_size=minibatch_size), lambda x: x >= 2, "must be at least 2")
        check(dict(top=top), lambda x: 0 < x <= 1, "must be more than 0 and at most 1")
        check_model(model, self)
        self.model, self.top = model, top
        self.left_out = f"of episodes below the top {100 * top:g} % of returns"
        self.learning_rate, self.anneal_learning_rate = learning_rate, anneal_learning_rate
        self.epochs, self.minibatch_size, self.max_grad_norm = epochs, minibatch_size, max_grad_norm
        self.optimizer = adam(model, learning_rate, adam_epsilon)
        self.n_updates = 0

    def choose(self, episodes: Mapping[str, np.ndarray]) -> np.ndarray | None:
        return top_of_tasks(episodes["return"], episodes["task"], self.top) if self.top < 1 else None

    def learn(self, batch: Batch) -> dict[str, float]:
        learning_rate = self.learning_rate * (1.0 - batch.progress if self.anneal_learning_rate else 1.0)
        set_learning_rate(self.optimizer, learning_rate)
        steps = self._steps(batch)
        settings = dict(epochs=self.epochs, minibatch_size=self.minibatch_size, max_grad_norm=self.max_grad_norm)
        statistics = fit(batch, steps, self.loss, self.optimizer, **settings)
        self.n_updates += 1
        return {"learned": len(steps["position"]), "learning_rate": learning_rate, "n_updates": self.n_updates, **statistics}

    def validate(self, batch: Batch) -> dict[str, float]:
        steps = self._steps(batch)
        if not len(steps["position"]):
            return {}
        output = evaluated(self.model, batch, steps["position"])
        return {name: float(number) for name, number in likelihood(self.model, output, steps["action"]).items()}

    def loss(self, batch: Batch, steps: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The negative log-likelihood of a minibatch's actions, and its statistics."""
        statistics = likelihood(self.model, forward(self.model, batch, steps["position"]), steps["action"])
        return statistics["negative_log_likelihood"], statistics

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "n_updates": self.n_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.n_updates = state["n_updates"]

    @staticmethod
    def _steps(batch: Batch) -> dict[str, Tensor]:
        slot = slots(batch)
        return {"position": position(batch, slot), "action": batch.fields["action"].flatten(0, 1).index_select(0, slot)}


def top_of_tasks(score: np.ndarray, task: np.ndarray, top: float) -> np.ndarray:
    """Which scores [E] are in the top share of their task's, bool [E]; ties with the last one in are in."""
    chosen = np.zeros(len(score), bool)
    for name in np.unique(task):
        of_task = task == name
        chosen[of_task] = score[of_task] >= np.quantile(score[of_task], 1 - top, method="higher")
    return chosen


def likelihood(model: Model, output: Output, action: Tensor) -> dict[str, Tensor]:
    """Statistics of recorded actions [B, ...] under the model; of discrete ones also how many it would choose greedily."""
    statistics = {"negative_log_likelihood": -model.distribution.log_prob(output.parameters, action).mean()}
    if not action.is_floating_point():
        with torch.no_grad():
            statistics["accuracy"] = (model.distribution.mode(output.parameters) == action).float().mean()
    return statistics
