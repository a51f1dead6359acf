"""An emulator that counts its moments, and workers that play it: for tests of workers and of evaluation."""

from functools import partial

import numpy as np

from mpirl.emulators.base import Transition
from mpirl.emulators.lanes import EmulatorLanes
from mpirl.models.distributions import Categorical
from mpirl.policies.base import Decision, Policy
from mpirl.assembly import draw_noise
from mpirl.schedule import Command
from mpirl.specs import ArraySpec, Specs
from mpirl.trajectory import Layout, Trajectory
from mpirl.worker import Lanes, Worker

RUN_SEED, NUM_ACTIONS = 7, 5
COUNTS, POSITION = "observation.counts", "observation.position"


class Counting:
    """Observes counts (moments since it was made, its last seed, the sum of actions since that seed) and the position in
    the episode, all above 0. Episode k has lengths[k % len(lengths)] steps; every second one is truncated."""

    specs = Specs(
        {COUNTS: ArraySpec((3,), "int64"), POSITION: ArraySpec((), "int64")},
        ArraySpec((), "int64", num_values=NUM_ACTIONS),
        {"lives": ArraySpec((), "int32")},
    )

    def __init__(self, lengths, reseed_every=1):
        self.lengths, self.reseed_every = lengths, reseed_every
        self.moments, self.episodes = 0, -1

    def reset(self, seed):
        if seed is not None:
            self.seed, self.actions = seed, 1
        self.episodes, self.position = self.episodes + 1, 0
        return self._observe()

    def step(self, action):
        self.position, self.actions = self.position + 1, self.actions + int(action)
        ended = self.position == self.lengths[self.episodes % len(self.lengths)]
        truncated = ended and self.episodes % 2 == 1
        reward = 100.0 * self.episodes + self.position
        return Transition(self._observe(), reward, ended and not truncated, truncated, {"lives": 99 - self.position})

    def first_extras(self):
        return {"lives": 99}

    def _observe(self):
        self.moments += 1
        return {"counts": np.array([self.moments, self.seed + 1, self.actions]), "position": self.position + 1}


class Uniform(Policy):
    """Uniform actions; keeps what it was shown. `value` is the age of the emulator, `core` counts the decisions."""

    def __init__(self):
        self.seen = []

    def act(self, observation, step_type, core, noise):
        self.seen.append(({name: array.copy() for name, array in observation.items()}, step_type.copy(), core.copy()))
        action = np.zeros(len(core), np.int64) if noise is None else (noise[:, 0] * NUM_ACTIONS).astype(np.int64)
        counts = observation[COUNTS]
        value = (counts if counts.ndim == 2 else counts[:, -1])[:, 0].astype(np.float32)
        return Decision(action, np.full(len(core), -1.5, np.float32), core + 1, {"value": value})


def make_worker(steps, lengths=(3,), num_lanes=1, first=0, total=None, context=0, reseed_every=1, index=None, greedy=False):
    """A worker of `num_lanes` lanes from `first` on; lane j's emulator has the lengths rotated by j."""
    emulators = iter(Counting(np.roll(lengths, -lane), reseed_every) for lane in range(first, first + max(num_lanes, 1)))
    layout = Layout(Counting.specs, steps, context, core=1, extras={"value": ArraySpec((), "float32")})
    index = np.zeros(num_lanes, np.int64) if index is None else np.array(index)
    return Worker(
        EmulatorLanes(lambda: next(emulators), num_lanes),
        Uniform(),
        Trajectory.allocate(layout, num_lanes),
        Lanes(first, total or num_lanes, index, RUN_SEED, reseed_every),
        None if greedy else partial(draw_noise, Categorical(NUM_ACTIONS)),
    )


def collect(worker, times, first_iteration=1):
    """Copies of the trajectories of several collects."""
    copies = []
    for iteration in range(first_iteration, first_iteration + times):
        worker.collect(Command(iteration, version=10 * iteration))
        copies.append({name: array.copy() for name, array in worker.trajectory.items()})
    return copies
