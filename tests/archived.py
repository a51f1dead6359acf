"""Archives made for tests by real workers with a random policy: no learner, no MPI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpirl.archive.reader import segments
from mpirl.archive.writer import SegmentWriter
from mpirl.emulators.lanes import make_emulator
from mpirl.episodes import EpisodeTracker
from mpirl.policies.base import Decision, Policy
from mpirl.schedule import Command
from mpirl.specs import ArraySpec, Specs
from mpirl.trajectory import Layout, Trajectory
from mpirl.worker import Lanes, Worker

CATCH = {"_target_": "mpirl.emulators.catch.Catch", "rows": 6, "columns": 5, "latency": 0.0}
CARTPOLE = {"_target_": "mpirl.emulators.gymnasium.GymnasiumEmulator", "id": "CartPole-v1", "settings": {}, "render": False}
PENDULUM = {**CARTPOLE, "id": "Pendulum-v1"}
MACHADO = {
    "_target_": "mpirl.emulators.ale.AtariLanes",
    "game": "pong",
    "repeat_action_probability": 0.25,
    "full_action_space": True,
    "noop_max": 0,
    "use_fire_reset": False,
    "life_loss": False,
    "max_episode_frames": 120,
    "reseed_every": 2,
}
DQN = MACHADO | {"repeat_action_probability": 0.0, "full_action_space": False, "noop_max": 30, "use_fire_reset": True, "life_loss": True}


class RandomPolicy(Policy):
    """Actions at random; `value` is a running number."""

    def __init__(self, specs: Specs, seed: int):
        self._specs, self._random, self._calls = specs, np.random.default_rng(seed), 0

    def act(self, observation, step_type, core, noise) -> Decision:
        lanes, spec = len(step_type), self._specs.action
        if spec.num_values:
            action = self._random.integers(spec.num_values, size=lanes)
        else:
            action = self._random.normal(0, 2, (lanes, *spec.shape)).astype(spec.dtype)  # also beyond the bounds
        self._calls += 1
        extras = {"value": np.full(lanes, self._calls, np.float32)}
        return Decision(action, np.zeros(lanes, np.float32), core, extras)


def record(
    run: Path,
    emulator: Mapping[str, Any],
    *,
    lanes: Sequence[int] = (2,),
    changes: Sequence[Mapping[str, Any]] = (),
    iterations: Sequence[int] = range(1, 5),
    steps: int = 16,
    context: int = 0,
    first_episode: int = 0,
    segment_iterations: int = 2,
    **settings: Any,
) -> Path:
    """Play `lanes` on so many workers, ranks 1, 2, ..., and write run/archive; what was there before stays, as at a resume.

    changes: of the emulator's settings on ranks 0, 1, 2, .... settings: of the writer. Returns `run`.
    """
    total, config = sum(lanes), {"emulator": dict(emulator), "seed": 3}
    changes = list(changes) or [{}] * (len(lanes) + 1)
    workers = []
    for rank, number in enumerate(lanes, start=1):
        batch = make_emulator(config, number, changes[rank])
        layout = Layout(batch.specs, steps, context=context, extras={"value": ArraySpec((), "float32")})
        index = np.full(number, first_episode, np.int64)
        place = Lanes(sum(lanes[: rank - 1]), total, index, config["seed"], batch.reseed_every)
        policy = RandomPolicy(batch.specs, seed=100 * first_episode + rank)
        workers.append(Worker(batch, policy, Trajectory.allocate(layout, number), place, lambda random, T: np.zeros((T, 1), np.float32)))
    lane_rank = [rank for rank, number in enumerate(lanes, start=1) for _ in range(number)]
    header = {"config": config, "seed": 3, "lane_rank": lane_rank, "lane_host": ["here"] * total, "rank_emulator": changes}
    writer = SegmentWriter(run / "archive", layout, header, segment_iterations=segment_iterations, **settings)
    tracker = EpisodeTracker(lane_rank)
    for iteration in iterations:
        for worker in workers:
            worker.collect(Command(iteration=iteration, version=iteration - 1))
        whole = {name: np.concatenate([worker.trajectory[name] for worker in workers]) for name in workers[0].trajectory}
        batch = Trajectory(layout, whole)
        writer.write(iteration, iteration - 1, batch, tracker.update(iteration, batch))
    writer.close()
    for worker in workers:
        worker.close()
    return run


def flip(run: Path, iteration: int, name: str, index: tuple[int, ...], bit: int = 0) -> None:
    """Change one bit of a field's value at [lane, t, ...] in the archive, or of a column of its episode table at [row]."""
    for path in segments(run / "archive"):
        with h5py.File(path, "r+") as file:
            for place in np.flatnonzero(file["iteration"][:] == iteration):
                where = index if name.startswith("episodes/") else (int(place), *index)
                value = np.array([file[name][where]])
                bits = value.view(f"u{value.itemsize}")
                bits ^= bits.dtype.type(1 << bit)
                file[name][where] = value[0]
                return
    raise AssertionError(f"no iteration {iteration} in {run}")
