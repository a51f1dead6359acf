"""The loop: broadcast the weights, collect, gather, learn. It reads like the algorithm."""

from __future__ import annotations

from collections.abc import Sequence

from mpirl.evaluation import evaluate
from mpirl.observers.base import Observer
from mpirl.role import Role
from mpirl.schedule import Schedule
from mpirl.transport.base import Group


def train(role: Role, group: Group, schedule: Schedule, observers: Sequence[Observer] = ()) -> None:
    """Collect on the workers, learn on rank 0, until the learner says stop.

    One program for every rank. Lines marked * are collective: all ranks reach them in the same order, so no branch
    around them may use rank-local data.
    """
    learner, worker = role.learner, role.worker  # exactly one is present
    for command in schedule.commands(group, learner):  # * iteration, version, decisions
        group.broadcast(role.weights)  # * learner -> workers, float32 [P]
        if worker:
            worker.collect(command)  # T steps in every lane
        group.gather(role.trajectory, role.batch, role.lanes)  # * workers -> learner
        if learner:
            learner.take(command)  # accounts, episodes, archive
            learner.learn(command)
        evaluation = evaluate(role, group, command) if command.evaluate else None  # *
        if learner:
            if command.save:
                role.checkpoints.save(learner)
            report = learner.report(command, evaluation)
            for observer in observers:
                observer.observe(report)
