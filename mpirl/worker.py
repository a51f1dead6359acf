"""A worker: lanes of emulators, a policy, and `collect`, which plays T steps in every lane."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mpirl import seeds
from mpirl.emulators.base import EmulatorBatch, Frame
from mpirl.models.stacking import next_age, stack_at
from mpirl.policies.base import Policy
from mpirl.schedule import Command
from mpirl.specs import StepType
from mpirl.trajectory import NO_SEED, Trajectory

LAST = int(StepType.LAST)  # comparing an array with an IntEnum takes numpy five times longer
Noise = Callable[[np.random.Generator, int], np.ndarray]
"""(generator, T) -> float32 [T, noise_size]: the randomness of one lane's actions."""


@dataclass
class Lanes:
    """The global lanes that a worker plays: numbers first .. first + n - 1 out of `total`, and their episodes.

    index: int64 [n], which episode each lane is in; episode k of lane j has id j + k * total. stream: of the seeds.
    """

    first: int
    total: int
    index: np.ndarray
    run_seed: int
    reseed_every: int
    stream: int = seeds.EPISODE

    @property
    def numbers(self) -> np.ndarray:
        """Global lane numbers, int64 [n]."""
        return self.first + np.arange(len(self.index))

    @property
    def ids(self) -> np.ndarray:
        """Ids of the present episodes, int64 [n]."""
        return self.numbers + self.index * self.total

    def seeds(self) -> np.ndarray:
        """A seed for every lane's present episode, int64 [n]."""
        return np.array([self._seed(lane) for lane in range(len(self.index))], np.int64)

    def advance(self, ended: np.ndarray) -> np.ndarray:
        """Go to the next episode where `ended` (bool [n]); their seeds where they are at a seed point, else NO_SEED."""
        self.index[ended] += 1
        seeded = np.full(len(self.index), NO_SEED, np.int64)
        for lane in np.flatnonzero(ended & (self.index % self.reseed_every == 0)):
            seeded[lane] = self._seed(lane)
        return seeded

    def _seed(self, lane: int) -> int:
        return seeds.episode_seed(self.run_seed, int(self.ids[lane]), self.stream)


class Worker:
    """Fills `trajectory` (N lanes x T steps) anew with every `collect`.

    noise: None acts greedily. begin is called before a collect (it sets this rank's threads), alive at every step, so
    that the group knows this rank is at work; say takes a line for this rank's log.
    """

    def __init__(
        self,
        emulator: EmulatorBatch,
        policy: Policy,
        trajectory: Trajectory,
        lanes: Lanes,
        noise: Noise | None,
        begin: Callable[[], None] = lambda: None,
        alive: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda text: None,
    ):
        self.emulator, self.policy, self.trajectory, self.lanes = emulator, policy, trajectory, lanes
        self._noise, self._begin, self._alive, self._say = noise, begin, alive, say
        self._observations = trajectory.observation
        self._age = np.zeros(trajectory.num_lanes, np.int64)  # observations since FIRST
        self._ids = lanes.ids  # of the present episodes; computed when one begins
        self._unseeded = np.full(trajectory.num_lanes, NO_SEED, np.int64)
        self._unseeded.flags.writeable = False
        T = trajectory.layout.steps
        self._frames = [self._frame(t) for t in range(T + 1)]
        self._choices = [(trajectory["action"][:, t], trajectory["log_prob"][:, t]) for t in range(T)]  # views of it, too
        self._collected = np.zeros(trajectory.num_lanes, np.int64)  # true steps, counted as they are made
        self._core = np.zeros_like(trajectory["core"])  # recurrent state [N, S]
        self._started = False

    def collect(self, command: Command) -> None:
        """Play T steps in every lane with the weights that the policy's model holds now."""
        for _ in self.playing(command):
            pass

    def playing(self, command: Command) -> Iterator[None]:
        """`collect`, with a pause wherever the policy was asked and has yet to answer: T + 1 times."""
        trajectory, T = self.trajectory, self.trajectory.layout.steps
        if not trajectory.num_lanes:
            self._alive()
            return
        start = time.perf_counter()
        self._begin()
        self._carry_over() if self._started else self._start()
        trajectory["version"][:] = command.version
        trajectory["core"][:] = self._core
        trajectory["episode"][:, 1:] = self._ids[:, None]
        trajectory["seed"][:, 1:] = NO_SEED
        noise = self._draw(command.iteration)  # [T, N, noise_size]
        for t in range(T):
            self._ask(t, noise[t])
            yield
            self._act(t)
            self._step(t)
            self._alive()
        self._ask(T, noise[0])
        yield
        for name, values in self.policy.answer().extras.items():  # o_T bootstraps
            trajectory[name][:, T] = values
        trajectory["collected"][:] = self._collected
        self._say(
            f"iteration {command.iteration} version {command.version}: {self._collected.sum():,} steps so far, "
            f"collected in {time.perf_counter() - start:.3f} s"
        )

    def restart(self) -> None:
        """Begin anew with episode 0 in every lane at the next collect."""
        self.lanes.index[:] = 0
        self._age[:] = 0
        self._core[:] = 0
        self._started = False

    def plays_on(self, unfinished: bool) -> bool:
        """Whether to collect once more, where this worker's own lanes are `unfinished` or not."""
        return unfinished

    def close(self) -> None:
        """Close the emulators."""
        self.emulator.close()

    def _start(self) -> None:
        """Seed and reset every lane; the frame is o_0, its context empty."""
        trajectory, seeded = self.trajectory, self.lanes.seeds()
        for array in trajectory.observation.values():
            array[:, : trajectory.layout.context] = 0
        self.emulator.reset(seeded, self._frames[0])
        self._ids = self.lanes.ids
        trajectory["episode"][:, 0] = self._ids
        trajectory["seed"][:, 0] = seeded
        self._started = True

    def _carry_over(self) -> None:
        """The last observation of the trajectory before becomes o_0, with its context of frames of the same episode."""
        trajectory, T, context = self.trajectory, self.trajectory.layout.steps, self.trajectory.layout.context
        for array in trajectory.observation.values():
            array[:, : context + 1] = stack_at(array, T, self._age, context + 1).reshape(array[:, : context + 1].shape).copy()
        for name in ("step_type", "episode", "seed", *trajectory.layout.specs.extras):
            trajectory[name][:, 0] = trajectory[name][:, T]

    def _ask(self, t: int, noise: np.ndarray | None) -> None:
        self.policy.ask(self._observation(t), self._frames[t].step_type, self._core, noise)

    def _act(self, t: int) -> None:
        (action, log_prob), decision = self._choices[t], self.policy.answer()
        action[:], log_prob[:] = decision.action, decision.log_prob
        for name, values in decision.extras.items():
            self.trajectory[name][:, t] = values
        self._core = decision.core

    def _step(self, t: int) -> None:
        ended = self._frames[t].step_type == LAST
        is_seam = np.count_nonzero(ended) > 0  # in few ticks only; the others do without what it takes
        seeded = self._cross_seam(t, ended) if is_seam else self._unseeded
        self._collected += 1
        self.emulator.step(self._choices[t][0], seeded, self._frames[t + 1])
        self._age = next_age(self._age, self._frames[t + 1].step_type) if is_seam else self._age + 1

    def _cross_seam(self, t: int, ended: np.ndarray) -> np.ndarray:
        """Go to the next episode where `ended` (bool [N]): this is no step, its action is ignored. Seeds int64 [N]."""
        trajectory = self.trajectory
        trajectory["log_prob"][ended, t] = 0
        self._collected[ended] -= 1
        seeded = self.lanes.advance(ended)
        self._ids = self.lanes.ids
        trajectory["episode"][:, t + 1 :] = self._ids[:, None]
        trajectory["seed"][:, t + 1] = seeded
        return seeded

    def _observation(self, t: int) -> dict[str, np.ndarray]:
        """Model inputs {field: [N, (k,) ...]} at time t; frames before the episode's FIRST are zero."""
        frame_stack = self.trajectory.layout.context + 1
        return {name: stack_at(array, t, self._age, frame_stack) for name, array in self._observations.items()}

    def _draw(self, iteration: int) -> Sequence[np.ndarray | None]:
        """All randomness of this iteration's actions: a function of (run seed, global lane, iteration)."""
        T, run_seed = self.trajectory.layout.steps, self.lanes.run_seed
        if self._noise is None:
            return [None] * T
        generators = (seeds.generator(run_seed, seeds.ACTION, int(lane), iteration) for lane in self.lanes.numbers)
        return np.stack([self._noise(generator, T) for generator in generators], axis=1)

    def _frame(self, t: int) -> Frame:
        """Views of the trajectory that the emulator writes observation o_t and what came with it into."""
        trajectory, before = self.trajectory, max(t - 1, 0)
        context = trajectory.layout.context
        return Frame(
            observation={name: array[:, context + t] for name, array in trajectory.observation.items()},
            step_type=trajectory["step_type"][:, t],
            reward=trajectory["reward"][:, before],
            discount=trajectory["discount"][:, before],
            extras={name: trajectory[name][:, t] for name in trajectory.layout.specs.extras},
        )
