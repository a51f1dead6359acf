"""The offline loop: broadcast the weights, learn from an archive while the workers evaluate. It reads like `loop`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mpirl.evaluation import evaluate
from mpirl.observers.base import Observer, tell
from mpirl.offline_role import OfflineRole
from mpirl.schedule import Command, Counters, Schedule
from mpirl.transport.base import Group


def learn_offline(role: OfflineRole, group: Group, schedule: Schedule, observers: Sequence[Observer] = ()) -> None:
    """Learn from batches of an archive, until all epochs are done. Lines marked * are collective, as in `loop.train`.

    An iteration evaluates the weights that it begins with; a last one, without learning, those that the run ends with.
    """
    learner = role.offline_learner
    for command in schedule.commands(group, learner):  # * iteration, version, decisions
        group.broadcast(role.weights)  # * learner -> workers, float32 [P]
        if learner:
            learner.study(command)  # meanwhile the workers play
        evaluation = evaluate(role, group, command) if command.evaluate and role.can_evaluate else None  # *
        if learner:
            learner.keep_best(evaluation, role.checkpoints)
            if command.save:
                role.checkpoints.save(learner)
            tell(observers, learner.report(command, evaluation))


class OfflineSchedule(Schedule):
    """Ends with an iteration that has nothing more to learn, and evaluates."""

    is_last: bool = False

    def decide(self, learner: Counters) -> Command:
        if learner.steps >= self.total_steps and not self.is_last and self.evaluate_every and not self.stop_reason:
            self.is_last = True
            return Command(learner.iteration, learner.version, evaluate=True)
        return super().decide(learner)


def make_schedule(config: Mapping[str, Any], role: OfflineRole) -> Schedule:
    """Evaluations every `offline.evaluate_every` iterations, until the learner has been through all epochs."""
    total_steps = role.offline_learner.total_steps if role.offline_learner else 0
    return OfflineSchedule(total_steps, config["offline"]["evaluate_every"], config["checkpoint"]["every"], config["max_time"])
