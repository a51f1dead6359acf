"""Archives of a game that counts, for tests of offline learning: every observation tells where it belongs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mpirl.archive.writer import SegmentWriter
from mpirl.specs import ArraySpec, Specs, StepType
from mpirl.trajectory import NO_SEED, Layout, Trajectory

SPECS = Specs({"observation": ArraySpec((2,), "int64")}, ArraySpec((), "int64", num_values=4))


def length_of(episode: int) -> int:
    return 2 + episode % 7


def reward_of(episode: int, step: int) -> float:
    return float(episode % 5 + step)


def return_of(episode: int) -> float:
    return sum(reward_of(episode, step) for step in range(length_of(episode)))


def record(
    directory: Path, iterations: int = 9, lanes: int = 3, steps: int = 5, context: int = 0, task=None, specs: Specs = SPECS
) -> dict[int, int]:
    """Write an archive; {episode id: steps recorded} of the episodes that were finished.

    Observations are (episode id + 1, steps since FIRST), actions (id + step) % 4; `reward_of` and `length_of` tell the rest.
    """
    layout = Layout(specs, steps, context)
    writer = SegmentWriter(directory, layout, {"config": {}, "seed": 0}, segment_iterations=4)
    episode, age = np.arange(lanes), np.zeros(lanes, int)
    finished: dict[int, int] = {}
    for iteration in range(1, iterations + 1):
        batch, rows = Trajectory.allocate(layout, lanes), []
        batch["seed"][:], batch["discount"][:] = NO_SEED, 1
        for lane in range(lanes):
            for back in range(1, context + 1):
                if age[lane] >= back:
                    batch["observation"][lane, context - back] = episode[lane] + 1, age[lane] - back
            for t in range(steps + 1):
                if t:
                    play(batch, lane, t - 1, episode, age)
                observe(batch, lane, t, episode[lane], age[lane])
                if t and batch["step_type"][lane, t] == StepType.LAST:
                    number = int(episode[lane])
                    finished[number] = length_of(number)
                    rows.append(row(number, lane, iteration, t))
        writer.write(iteration, iteration, batch, rows)
    writer.close()
    return finished


def observe(batch: Trajectory, lane: int, t: int, episode: int, age: int) -> None:
    batch["observation"][lane, batch.layout.context + t] = episode + 1, age
    batch["episode"][lane, t] = episode
    kinds = {0: StepType.FIRST, length_of(episode): StepType.LAST}
    batch["step_type"][lane, t] = kinds.get(age, StepType.MID)


def play(batch: Trajectory, lane: int, t: int, episode: np.ndarray, age: np.ndarray) -> None:
    """Step t of a lane: the seam after LAST begins the lane's next episode."""
    number = int(episode[lane])
    if age[lane] == length_of(number):
        episode[lane], age[lane] = number + len(episode), 0
        batch["action"][lane, t], batch["reward"][lane, t] = 3, 0
        return
    batch["action"][lane, t] = (number + age[lane]) % 4
    batch["reward"][lane, t] = reward_of(number, int(age[lane]))
    age[lane] += 1
    batch["discount"][lane, t] = float(age[lane] < length_of(number) or number % 2)


def row(number: int, lane: int, iteration: int, t: int) -> dict:
    return {
        "id": number,
        "lane": lane,
        "rank": 1,
        "return": return_of(number),
        "length": length_of(number),
        "reason": "truncated" if number % 2 else "terminated",
        "end_iteration": iteration,
        "end_step": t,
    }
