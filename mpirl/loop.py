"""The loop: broadcast the weights, collect, gather, learn. It reads like the algorithm."""

from __future__ import annotations

from collections.abc import Sequence

from mpirl.evaluation import evaluate
from mpirl.observers.base import Observer, Telling
from mpirl.role import Role
from mpirl.schedule import Command, Schedule
from mpirl.transport.base import Group


def train(role: Role, group: Group, schedule: Schedule, observers: Sequence[Observer] = ()) -> None:
    """Collect on the workers, learn on rank 0, until the learner says stop.

    One program for every rank. Lines marked * are collective: all ranks reach them in the same order, so no branch
    around them may use rank-local data.
    """
    learner, worker = role.learner, role.worker  # one of them, or both on rank 0 with policy=central
    with Telling(observers) as telling:
        for command in schedule.commands(group, learner):  # * iteration, version, decisions
            group.broadcast(role.published)  # * learner -> workers, float32 [P]; with policy=central nothing
            telling.now()  # of the iteration before, while the workers play this one
            if worker:
                worker.collect(command)  # T steps in every lane; * with policy=central, where rank 0 answers at every step
            with group.gathering(role.trajectory, role.staging, role.lanes, beside=schedule.lag > 0):  # * workers -> learner
                update(role, command)  # with schedule.lag=1 meanwhile, from the batch before
            if learner:
                learner.take(command)  # accounts, episodes, archive
            if not schedule.lag:
                update(role, command)
            evaluation = evaluate(role, group, command) if command.evaluate else None  # *
            if learner:
                telling.later(learner.report(command, evaluation))
        if learner and learner.learn():  # the last batch, with schedule.lag=1
            telling.later(learner.report(command, None))


def update(role: Role, command: Command) -> None:
    """On rank 0: learn from the batch that was taken last, if that is not done; save if it is time."""
    if role.learner and role.learner.learn() and command.save:
        role.checkpoints.save(role.learner)
