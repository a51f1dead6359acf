"""Lanes of single emulators: autoreset, and refusal of what does not fit the specs."""

import numpy as np
import pytest

from mpirl.emulators.base import Emulator, EmulatorBatch, Frame, Transition
from mpirl.emulators.catch import Catch
from mpirl.emulators.lanes import EmulatorLanes, make_lanes
from mpirl.errors import UserError
from mpirl.specs import ArraySpec, Specs, StepType
from mpirl.trajectory import NO_SEED


class Counter(Emulator):
    """Counts its steps and resets; ends after `length` steps, by truncation if so told."""

    def __init__(self, length: int = 3, truncates: bool = False):
        self.specs = Specs(
            {"observation.count": ArraySpec((2,), "int64"), "observation.deep.seed": ArraySpec((), "int64")},
            ArraySpec((), "int64", num_values=2),
            {"lives": ArraySpec((), "int32")},
        )
        self.length, self.truncates = length, truncates
        self.count, self.resets, self.seed, self.actions, self.is_closed = 0, 0, -7, [], False

    def reset(self, seed):
        self.count, self.resets = 0, self.resets + 1
        self.seed = -7 if seed is None else seed
        return self._observation()

    def first_extras(self):
        return {"lives": 9}

    def step(self, action):
        self.count += 1
        self.actions.append(int(action))
        ends, reward = self.count == self.length, 100.0 * self.count
        extras = {"lives": np.int32(8)}
        return Transition(self._observation(), reward, ends and not self.truncates, ends and self.truncates, extras)

    def _observation(self):
        return {"count": np.array([self.count, self.resets]), "deep": {"seed": self.seed}}

    def close(self):
        self.is_closed = True


def seeds(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def play(lanes: EmulatorBatch, num_steps: int, seed: np.ndarray) -> list[Frame]:
    """The frame of a reset and those of `num_steps` steps with action 1."""
    frames = [Frame.allocate(lanes.specs, lanes.num_lanes) for _ in range(num_steps + 1)]
    lanes.reset(seed, frames[0])
    for frame in frames[1:]:
        lanes.step(np.ones(lanes.num_lanes, np.int64), seed, frame)
    return frames


def test_step_after_last_ignores_the_action_and_returns_first():
    emulators = []
    lanes = EmulatorLanes(lambda: emulators.append(Counter(length=3)) or emulators[-1], 1)
    frames = play(lanes, 5, seeds(5))
    assert [frame.step_type[0] for frame in frames] == [
        StepType.FIRST, StepType.MID, StepType.MID, StepType.LAST, StepType.FIRST, StepType.MID
    ]  # fmt: skip
    assert [frame.reward[0] for frame in frames] == [0, 100, 200, 300, 0, 100]
    assert [frame.discount[0] for frame in frames] == [1, 1, 1, 0, 1, 1]
    assert emulators[0].actions == [1, 1, 1, 1]  # the seam's action is not played


def test_truncation_is_last_with_discount_one():
    frame = play(EmulatorLanes(lambda: Counter(length=2, truncates=True), 1), 2, seeds(5))[-1]
    assert (frame.step_type[0], frame.discount[0], frame.reward[0]) == (StepType.LAST, 1.0, 200.0)


def test_nested_observations_and_extras_fill_their_fields():
    frames = play(EmulatorLanes(Counter, 2), 1, seeds(5, 6))
    np.testing.assert_array_equal(frames[1].observation["observation.count"], [[1, 1], [1, 1]])
    np.testing.assert_array_equal(frames[1].observation["observation.deep.seed"], [5, 6])
    assert [frame.extras["lives"].tolist() for frame in frames] == [[9, 9], [8, 8]]


def test_lane_is_seeded_only_where_a_seed_is_given():
    lanes = EmulatorLanes(lambda: Counter(length=1), 2)
    play(lanes, 1, seeds(5, 6))
    frame = Frame.allocate(lanes.specs, 2)
    lanes.step(np.ones(2, np.int64), seeds(NO_SEED, 4), frame)
    assert frame.observation["observation.deep.seed"].tolist() == [-7, 4]


def test_frames_may_be_strided_views():
    lanes = EmulatorLanes(Catch, 3)
    whole = np.full((3, 7, 10, 5), -1, np.float32)  # lane-major, as in a trajectory
    frame = Frame.allocate(lanes.specs, 3)
    frame.observation = {"observation": whole[:, 2]}
    lanes.reset(seeds(1, 2, 3), frame)
    assert (whole[:, 2].sum(axis=(1, 2)) == 2).all()
    assert (whole[:, [0, 1, 3, 4, 5, 6]] == -1).all()


def test_zero_lanes_know_their_specs():
    lanes = EmulatorLanes(Catch, 0)
    assert lanes.specs == Catch().specs
    play(lanes, 2, seeds())
    lanes.close()


def test_an_emulator_need_not_subclass_anything():
    class Plain:
        specs = Specs({"observation": ArraySpec((1,), "float32")}, ArraySpec((), "int64", num_values=2))

        def reset(self, seed):
            return [0.0]

        def step(self, action):
            return [1.0], 2, True, False

    lanes = make_lanes(Plain, 2, {})
    frame = play(lanes, 1, seeds(1, 2))[-1]
    assert frame.reward.tolist() == [2.0, 2.0] and lanes.reseed_every == 1 and lanes.render(0) is None
    lanes.close()


def test_make_lanes_lets_a_batch_make_its_own_lanes():
    class Batch(EmulatorBatch):
        def __init__(self, num_lanes, size):
            self.num_lanes, self.size = num_lanes, size

        def reset(self, seed, out): ...
        def step(self, action, seed, out): ...

    batch = make_lanes(Batch, 3, {"size": 4})
    assert isinstance(batch, Batch) and (batch.num_lanes, batch.size) == (3, 4)


def test_every_emulator_is_closed_even_if_one_fails():
    emulators = []
    lanes = EmulatorLanes(lambda: emulators.append(Counter()) or emulators[-1], 2)
    emulators[1].close = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        lanes.close()
    assert emulators[0].is_closed


class Wrong(Catch):
    """Catch with its methods' results replaced."""

    first = np.zeros((10, 5), np.float32)
    result = Transition(np.zeros((10, 5), np.float32), 0.0, False, False)

    def reset(self, seed):
        return self.first

    def step(self, action):
        return self.result


@pytest.mark.parametrize(
    "observation, words",
    [
        (np.zeros((10, 4), np.float32), r"Wrong returned 'observation' with shape \(10, 4\), its specs say \(10, 5\)"),
        (np.zeros((10, 5)), "Wrong returned 'observation' with dtype float64, its specs say float32"),
        ({"board": np.zeros((10, 5), np.float32)}, r"Wrong did not return 'observation'.*\['observation.board'\]"),
        ({}, "Wrong did not return 'observation'"),
    ],
)
def test_observation_that_does_not_fit_the_specs_is_refused(observation, words):
    at_reset = type("Wrong", (Wrong,), {"first": observation})
    at_step = type("Wrong", (Wrong,), {"result": Transition(observation, 0.0, False, False)})
    for emulator, num_steps in ((at_reset, 0), (at_step, 1)):
        with pytest.raises(UserError, match=words):
            play(EmulatorLanes(emulator, 1), num_steps, seeds(1))


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_reward_that_is_not_finite_names_the_lane(reward):
    lanes = EmulatorLanes(Wrong, 3)
    lanes._emulators[2].result = Wrong.result._replace(reward=reward)
    with pytest.raises(UserError, match=f"Wrong.step returned reward {reward} in lane 2"):
        play(lanes, 1, seeds(1, 2, 3))


def test_step_that_returns_no_transition_is_refused():
    with pytest.raises(UserError, match=r"Wrong.step returned None: return a .*Transition"):
        play(EmulatorLanes(type("Wrong", (Wrong,), {"result": None}), 1), 1, seeds(1))


def test_what_is_no_emulator_is_refused():
    with pytest.raises(UserError, match="dict is no emulator: it has no `specs`"):
        EmulatorLanes(dict, 1)
    with pytest.raises(UserError, match="NoSpecs.specs is a str: make it a mpirl.specs.Specs"):
        EmulatorLanes(type("NoSpecs", (Wrong,), {"__init__": lambda self: setattr(self, "specs", "box")}), 1)


def test_lanes_of_different_specs_are_refused():
    rows = iter((10, 11))
    with pytest.raises(UserError, match="two Catch have different specs"):
        EmulatorLanes(lambda: Catch(rows=next(rows)), 2)
