"""The conformance kits of emulators and transports let good examples pass and name what is wrong with bad ones."""

import itertools
import math

import numpy as np
import pytest

from mpirl.emulators.base import Transition
from mpirl.emulators.catch import Catch
from mpirl.emulators.lanes import EmulatorLanes
from mpirl.specs import ArraySpec, Specs, StepType
from mpirl.testing import CountingEmulator, check_emulator, check_transport
from mpirl.trajectory import NO_SEED
from mpirl.transport.base import Stopwatch
from mpirl.transport.threads import ThreadGroup, run_threads

SPECS = Specs({"observation": ArraySpec((2,), "float32", low=0.0, high=30.0)}, ArraySpec((), "int64", num_values=2))


class Walk:
    """A good emulator that subclasses nothing: two numbers that grow with the action or by chance, for up to 8 steps."""

    specs = SPECS

    def reset(self, seed):
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.state, self.left = np.zeros(2, np.float32), self.random.integers(1, 9)
        return self.state.copy()

    def step(self, action):
        self.state += [int(action), self.chance()]
        self.left -= 1
        return Transition(self.state.copy(), self.reward(), self.left == 0 and self.state[0] > 2, self.left == 0)

    def chance(self):
        return self.random.random()

    def reward(self):
        return float(self.state[1])


class WrongDtype(Walk):
    def reset(self, seed):
        return super().reset(seed).astype(np.float64)


class WrongShape(Walk):
    def reset(self, seed):
        return super().reset(seed)[:1]


class GymReset(Walk):
    def reset(self, seed):
        return super().reset(seed), {}


class BeyondBounds(Walk):
    def step(self, action):
        transition = super().step(action)
        return transition._replace(observation=transition.observation - 100)


class InfiniteReward(Walk):
    def reward(self):
        return math.inf


class IgnoresSeed(Walk):
    def reset(self, seed):
        return super().reset(None if hasattr(self, "random") else 5)


class SharesRandomNumbers(Walk):
    def reset(self, seed):
        if seed is not None:
            np.random.seed(seed)
        return super().reset(seed)

    def chance(self):
        return np.random.random()


class RemembersEpisodes(Walk):
    episodes = 0

    def reset(self, seed):
        self.episodes += 1
        return super().reset(seed)

    def reward(self):
        return float(self.episodes)


class NeverEnds(Walk):
    def step(self, action):
        return super().step(action)._replace(observation=np.zeros(2, np.float32), terminated=False, truncated=False)


class BadPicture(Walk):
    def render(self):
        return np.zeros((4, 4), np.uint8)


class NoSpecs(Walk):
    specs = {"observation": (2,)}


@pytest.mark.parametrize("make", [Walk, Catch, lambda: EmulatorLanes(Walk, 5), lambda: EmulatorLanes(Catch, 1)])
def test_a_good_emulator_passes(make):
    check_emulator(make, max_steps=100)


@pytest.mark.parametrize(
    ("emulator", "complaint"),
    [
        (WrongDtype, "dtype float64"),
        (WrongShape, "shape"),
        (GymReset, "tuple"),
        (BeyondBounds, "below its spec"),
        (InfiniteReward, "finite"),
        (IgnoresSeed, "same seed and actions"),
        (SharesRandomNumbers, "same seed and actions"),
        (RemembersEpisodes, "reward .* differ"),
        (CountingEmulator, "observation .* differ"),
        (NeverEnds, "not ended after 100 steps"),
        (BadPicture, "render"),
        (NoSpecs, "Specs"),
    ],
)
def test_a_bad_emulator_is_noticed(emulator, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_emulator(emulator, max_steps=100)


class Bad(EmulatorLanes):
    """Lanes of a good emulator, for subclasses to spoil."""

    def __init__(self):
        super().__init__(Walk, 3)


class ForgetsAutoreset(Bad):
    def step(self, action, seed, out):
        self._ended = [False] * 3
        for emulator in self._emulators:
            emulator.left = max(emulator.left, 1)
        super().step(action, seed, out)


class RewardsTheSeam(Bad):
    def step(self, action, seed, out):
        super().step(action, seed, out)
        out.reward[out.step_type == StepType.FIRST] = 1.0


class DiscountsTheSeam(Bad):
    def step(self, action, seed, out):
        super().step(action, seed, out)
        out.discount[out.step_type == StepType.FIRST] = 0.0


class PlaysTheSeamAction(Bad):
    def step(self, action, seed, out):
        super().step(action, seed, out)
        out.observation["observation"][:, 0] += np.where(out.step_type == StepType.FIRST, action, 0)


class SeedsRunningLanes(Bad):
    def step(self, action, seed, out):
        for emulator, number in zip(self._emulators, seed):
            if number != NO_SEED:
                emulator.random = np.random.default_rng(number)
        super().step(action, seed, out)


class ForgetsReward(Bad):
    def step(self, action, seed, out):
        reward = out.reward.copy()
        super().step(action, seed, out)
        out.reward[2] = reward[2]


class ReplacesArrays(Bad):
    def step(self, action, seed, out):
        super().step(action, seed, out)
        out.reward = out.reward.copy()


class WritesBesideTheFrame(Bad):
    def step(self, action, seed, out):
        super().step(action, seed, out)
        out.reward.base[:, 2] = 0


class SwapsLanes(Bad):
    def step(self, action, seed, out):
        super().step(action, seed, out)
        out.observation["observation"][:2] = out.observation["observation"][1::-1]


@pytest.mark.parametrize(
    ("batch", "complaint"),
    [
        (ForgetsAutoreset, "must be FIRST"),
        (RewardsTheSeam, "reward of a FIRST frame"),
        (DiscountsTheSeam, "discount of a FIRST frame"),
        (PlaysTheSeamAction, "same seed and actions"),
        (SeedsRunningLanes, "same seed and actions"),
        (ForgetsReward, "reward"),
        (ReplacesArrays, "was replaced"),
        (WritesBesideTheFrame, "memory around the frame"),
        (SwapsLanes, "same seed and actions"),
    ],
)
def test_a_bad_batch_is_noticed(batch, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_emulator(batch, episodes=3, max_steps=100)


def test_counting_emulator_counts_its_steps_and_obeys_its_seed():
    one, two = CountingEmulator(5), CountingEmulator(5)
    lengths = []
    for seed in range(20):
        one.reset(seed)
        steps = list(itertools.takewhile(lambda t: not (t.terminated or t.truncated), (one.step(0) for _ in range(99))))
        lengths.append(len(steps) + 1)
    assert one.reset(None).tolist() == [0, sum(lengths)]
    assert min(lengths) >= 1 and max(lengths) <= 9 and len(set(lengths)) > 3
    two.reset(7)
    transitions = [two.step(1) for _ in range(lengths[7])]
    assert transitions[-1].terminated == (lengths[7] % 2 == 1) and transitions[-1].truncated == (lengths[7] % 2 == 0)


def run_with(change):
    """A `run` for check_transport, on thread groups that `change(group)` has spoilt."""

    def run(size, claim):
        def work(group: ThreadGroup):
            change(group)
            claim(group)

        run_threads(size, work, deadline=2.0)

    return run


def drops_a_lane(group):
    gather = group.gather

    def bad(part, whole, lanes):
        gather(part, whole, lanes)
        if whole and sum(lanes) > 1:
            whole["reward"][-1] = 0

    group.gather = bad


def gathers_in_reverse(group):
    gather = group.gather

    def bad(part, whole, lanes):
        gather(part, whole, lanes)
        for array in (whole or {}).values():
            array[:] = array[::-1].copy()

    group.gather = bad


def broadcasts_once(group):
    broadcast, seen = group.broadcast, {}

    def bad(array):
        broadcast(array)
        array[...] = seen.setdefault((array.shape, array.dtype), array.copy())

    group.broadcast = bad


def misorders_exchange(group):
    exchange = group.exchange
    group.exchange = lambda value: exchange(value)[::-1]


def splits_into_itself(group):
    group.split = lambda color: group


def hides_the_phases(group):
    gather = group.gather

    def bad(part, whole, lanes):
        stopwatch, group.stopwatch = group.stopwatch, Stopwatch()
        gather(part, whole, lanes)
        group.stopwatch = stopwatch

    group.gather = bad


def test_the_thread_transport_passes():
    check_transport(run_threads, sizes=(1, 2, 4))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (drops_a_lane, "reward gathered from lanes"),
        (gathers_in_reverse, "gathered from lanes"),
        (broadcasts_once, "broadcast_fills"),
        (misorders_exchange, "ranks_are_numbered"),
        (splits_into_itself, "split_makes_groups"),
        (hides_the_phases, "the stopwatch heard"),
    ],
)
def test_a_bad_transport_is_noticed(change, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_transport(run_with(change), sizes=(3,))
