"""Batches whose episodes are known, to archive and to compare with what is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpirl.specs import ArraySpec, Specs, StepType
from mpirl.trajectory import NO_SEED, Layout, Trajectory

FRAME = ArraySpec((3, 4), "uint8", low=0.0, high=255.0)
CAMERA = ArraySpec((40, 30), "uint8")  # large enough to have chunks of its own
SPEED = ArraySpec((2,), "float32", low=(-1.5, float("-inf")), high=(0.1, float("inf")))
LAYOUTS = {
    "plain observation, discrete action": Layout(Specs({"observation": FRAME}, ArraySpec((), "int64", num_values=6)), steps=7),
    "dict observation, continuous action": Layout(
        Specs({"observation.camera": CAMERA, "observation.a/b": SPEED}, ArraySpec((3,), "float32", low=-1.0, high=1.0)),
        steps=20,
    ),
    "extras, core and context": Layout(
        Specs({"observation": FRAME}, ArraySpec((), "int32", num_values=2), {"lives": ArraySpec((), "int32")}),
        steps=5,
        context=3,
        core=8,
        extras={"value": ArraySpec((), "float32"), "parameters": ArraySpec((2,), "float32")},
    ),
    "one step": Layout(Specs({"observation": SPEED}, ArraySpec((), "uint8", num_values=2)), steps=1, context=1),
}


class Simulation:
    """Lanes with autoreset whose arrays are random.

    `played` holds every episode that has ended: {id: (observations, actions, rewards)}.
    """

    def __init__(self, layout: Layout, num_lanes: int = 2):
        self.layout, self.num_lanes = layout, num_lanes
        self.played: dict[int, tuple[list, list, list]] = {}
        self.num_steps = 0
        self._random = np.random.default_rng(0)
        self._before: Trajectory | None = None
        self._open: list[tuple[list, list, list]] = []

    def batch(self, iteration: int) -> tuple[Trajectory, list[dict[str, Any]]]:
        """The next trajectory of all lanes, and the rows of the episodes that end in it."""
        batch = Trajectory.allocate(self.layout, self.num_lanes)
        for array in batch.values():
            array[...] = self._random.integers(0, 100, array.shape)
        rows = [row for lane in range(self.num_lanes) for row in self._play(batch, lane, iteration)]
        self._before = batch
        return batch, rows

    def _play(self, batch: Trajectory, lane: int, iteration: int) -> list[dict[str, Any]]:
        T, rows = self.layout.steps, []
        self._carry(batch, lane)
        for t in range(T):
            if batch["step_type"][lane, t] == StepType.LAST:
                self._start(batch, lane, t + 1, int(batch["episode"][lane, t]) + self.num_lanes)
                continue
            self.num_steps += 1
            observations, actions, rewards = self._open[lane]
            observations.append(self._observation(batch, lane, t + 1))
            actions.append(batch["action"][lane, t].copy())
            rewards.append(float(batch["reward"][lane, t]))
            number = batch["episode"][lane, t + 1] = batch["episode"][lane, t]
            batch["seed"][lane, t + 1] = NO_SEED
            ends = len(actions) == 3 + number % 5
            batch["step_type"][lane, t + 1] = StepType.LAST if ends else StepType.MID
            if ends:
                self.played[int(number)] = self._open[lane]
                rows.append(self._row(lane, int(number), iteration, t + 1))
        return rows

    def _carry(self, batch: Trajectory, lane: int) -> None:
        if self._before is None:
            self._open.append(([], [], []))
            self._start(batch, lane, 0, lane)
            return
        for name in ("step_type", "episode", "seed", *self.layout.specs.extras):
            batch[name][lane, 0] = self._before[name][lane, -1]
        for name, array in batch.observation.items():
            array[lane, : self.layout.context + 1] = self._before[name][lane, self.layout.steps :]

    def _start(self, batch: Trajectory, lane: int, t: int, number: int) -> None:
        batch["step_type"][lane, t], batch["episode"][lane, t], batch["seed"][lane, t] = StepType.FIRST, number, 1000 + number
        self._open[lane] = ([self._observation(batch, lane, t)], [], [])

    def _observation(self, batch: Trajectory, lane: int, t: int) -> dict[str, np.ndarray]:
        return {name: array[lane, self.layout.context + t].copy() for name, array in batch.observation.items()}

    def _row(self, lane: int, number: int, iteration: int, t: int) -> dict[str, Any]:
        rewards = self.played[number][2]
        return {
            "id": number,
            "lane": lane,
            "rank": lane + 1,
            "return": sum(rewards),
            "length": len(rewards),
            "reason": "terminated" if number % 2 else "truncated",
            "seed": 1000 + number,
            "start_iteration": None,
            "start_step": None,
            "end_iteration": iteration,
            "end_step": t,
        }


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS.keys())
def layout(request: pytest.FixtureRequest) -> Layout:
    return request.param


@pytest.fixture
def simulation() -> Simulation:
    return Simulation(LAYOUTS["plain observation, discrete action"])


@pytest.fixture
def simulate() -> type[Simulation]:
    return Simulation
