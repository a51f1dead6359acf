"""Evaluation: greedy episodes on all workers, returns gathered on rank 0."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mpirl.episodes import EpisodeTracker
from mpirl.role import Player, Role
from mpirl.schedule import Command
from mpirl.transport.base import Group


def evaluate(role: Role, group: Group, command: Command) -> dict[str, float] | None:
    """* Play the same greedy episodes as at every evaluation; their statistics on rank 0, None elsewhere.

    Every lane plays the same number of episodes, so that short ones are not preferred. The times go to "evaluate".
    """
    with group.stopwatch.counted_as("evaluate"):
        per_lane = role.episodes_per_lane
        part = play(role.evaluator, command, per_lane) if role.evaluator else None
        whole = results(sum(role.lanes), per_lane) if role.learner else None
        group.gather(part, whole, role.lanes)  # *
    return statistics(whole) if whole else None


def play(evaluator: Player, command: Command, per_lane: int) -> dict[str, np.ndarray]:
    """Play `per_lane` episodes in every lane: {"return": float64 [N, per_lane], "length": int64 [N, per_lane]}."""
    num_lanes = evaluator.trajectory.num_lanes
    found, count = results(num_lanes, per_lane), np.zeros(num_lanes, int)
    evaluator.restart()
    tracker = EpisodeTracker([0] * num_lanes)
    while evaluator.plays_on(bool(count.min(initial=per_lane) < per_lane)):
        evaluator.collect(command)
        for row in tracker.update(command.iteration, evaluator.trajectory):
            lane = row["lane"]
            if count[lane] < per_lane:
                found["return"][lane, count[lane]] = row["return"]
                found["length"][lane, count[lane]] = row["length"]
                count[lane] += 1
    return found


def results(num_lanes: int, per_lane: int) -> dict[str, np.ndarray]:
    return {"return": np.zeros((num_lanes, per_lane)), "length": np.zeros((num_lanes, per_lane), np.int64)}


def statistics(whole: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Names as in Stable-Baselines3's EvalCallback."""
    return {
        "mean_reward": float(whole["return"].mean()),
        "std_reward": float(whole["return"].std()),
        "min_reward": float(whole["return"].min()),
        "max_reward": float(whole["return"].max()),
        "mean_ep_length": float(whole["length"].mean()),
        "episodes": int(whole["return"].size),
    }
