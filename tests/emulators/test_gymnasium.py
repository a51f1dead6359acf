"""Gymnasium environments: spaces to specs, seeds, and refusals."""

import sys

import numpy as np
import pytest

from mpirl.emulators.base import Frame
from mpirl.emulators.gymnasium import GymnasiumEmulator
from mpirl.emulators.lanes import EmulatorLanes
from mpirl.errors import UserError
from mpirl.specs import ArraySpec, StepType

gymnasium = pytest.importorskip("gymnasium")
spaces = gymnasium.spaces

OBSERVATION = spaces.Dict(
    {
        "camera": spaces.Box(0, 255, (4, 4, 3), np.uint8),
        "state": spaces.Dict({"speed": spaces.Box(-np.inf, np.inf, (2,), np.float64), "gear": spaces.Discrete(3, start=-1)}),
        "buttons": spaces.MultiBinary(3),
        "dials": spaces.MultiDiscrete([2, 5]),
    }
)


class Spaces(gymnasium.Env):
    """An environment of any spaces, that remembers its last action."""

    def __init__(self, observation=OBSERVATION, action=spaces.Discrete(2)):
        self.observation_space, self.action_space, self.last_action = observation, action, None

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        self.last_action = action
        return self.observation_space.sample(), 1.5, False, True, {}


@pytest.fixture(autouse=True)
def registered():
    known = dict(gymnasium.registry)
    gymnasium.register("Spaces-v0", entry_point=Spaces)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(known)


def played(emulator: GymnasiumEmulator, action: np.ndarray) -> object:
    """The action that reached the environment."""
    emulator.reset(1)
    emulator.step(action)
    return emulator._environment.unwrapped.last_action


def test_dict_observations_become_fields():
    lanes = EmulatorLanes(lambda: GymnasiumEmulator("Spaces-v0"), 2)
    assert lanes.specs.observation == {
        "observation.camera": ArraySpec((4, 4, 3), "uint8", low=0.0, high=255.0),
        "observation.state.speed": ArraySpec((2,), "float32"),
        "observation.state.gear": ArraySpec((), "int64", num_values=3),
        "observation.buttons": ArraySpec((3,), "int8", low=0.0, high=1.0),
        "observation.dials": ArraySpec((2,), "int64", low=0.0, high=(1.0, 4.0)),
    }
    frame, again = Frame.allocate(lanes.specs, 2), Frame.allocate(lanes.specs, 2)
    lanes.reset(np.array([7, 8]), frame)
    lanes.reset(np.array([8, 7]), again)
    for name, values in frame.observation.items():
        np.testing.assert_array_equal(values, again.observation[name][::-1])
    OBSERVATION.seed(7)
    sample = OBSERVATION.sample()
    np.testing.assert_array_equal(frame.observation["observation.camera"][0], sample["camera"])
    np.testing.assert_array_equal(frame.observation["observation.state.speed"][0], sample["state"]["speed"].astype(np.float32))
    assert frame.observation["observation.state.gear"][0] == sample["state"]["gear"] + 1  # counts from 0


def test_discrete_action_starts_where_its_space_does():
    emulator = GymnasiumEmulator("Spaces-v0", {"action": spaces.Discrete(4, start=10)})
    assert emulator.specs.action == ArraySpec((), "int64", num_values=4)
    assert played(emulator, np.int64(3)) == 13


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_continuous_action_is_clipped_to_its_bounds(dtype):
    emulator = GymnasiumEmulator("Spaces-v0", {"action": spaces.Box(np.array([-1, -2]), np.array([1, 2]), dtype=dtype)})
    assert emulator.specs.action == ArraySpec((2,), "float32", low=(-1.0, -2.0), high=(1.0, 2.0))
    action = played(emulator, np.array([5, -0.5], np.float32))
    assert action.tolist() == [1.0, -0.5] and action.dtype == dtype


def test_pendulum_is_truncated_and_never_terminated():
    lanes = EmulatorLanes(lambda: GymnasiumEmulator("Pendulum-v1"), 1)
    frame = Frame.allocate(lanes.specs, 1)
    assert frame.observation["observation"].dtype == np.float32
    lanes.reset(np.array([1]), frame)
    for _ in range(200):
        lanes.step(np.zeros((1, 1), np.float32), np.array([1]), frame)
    assert (frame.step_type[0], frame.discount[0]) == (StepType.LAST, 1.0)
    assert frame.reward[0] < -1.0  # raw


def test_cartpole_falls_by_termination():
    lanes = EmulatorLanes(lambda: GymnasiumEmulator("CartPole-v1"), 1)
    frame = Frame.allocate(lanes.specs, 1)
    lanes.reset(np.array([1]), frame)
    while frame.step_type[0] != StepType.LAST:
        lanes.step(np.ones(1, np.int64), np.array([1]), frame)
    assert frame.discount[0] == 0.0


def test_settings_reach_the_environment():
    emulator = GymnasiumEmulator("CartPole-v1", {"max_episode_steps": 1})
    emulator.reset(1)
    assert emulator.step(np.int64(0)).truncated


@pytest.mark.parametrize(
    "space, name",
    [
        (spaces.Tuple([spaces.Discrete(2)]), "observation has space Tuple"),
        (spaces.Dict({"a": spaces.Text(4)}), "observation.a has space Text"),
    ],
)
def test_unsupported_observation_space_is_named(space, name):
    with pytest.raises(UserError, match=f"Spaces-v0: {name}.*supported are Box, Discrete"):
        GymnasiumEmulator("Spaces-v0", {"observation": space})


@pytest.mark.parametrize("space", [spaces.MultiDiscrete([2, 2]), spaces.Box(0, 5, (2,), np.int64)])
def test_unsupported_action_space_is_named(space):
    with pytest.raises(UserError, match=f"action has space {type(space).__name__}.*supported are Discrete and Box of floats"):
        GymnasiumEmulator("Spaces-v0", {"action": space})


def test_fractions_in_an_integer_observation_are_refused():
    class Fraction(Spaces):
        def reset(self, seed=None, options=None):
            return np.full(2, 0.5), {}

    gymnasium.register("Fraction-v0", entry_point=Fraction)
    with pytest.raises(UserError, match="Fraction-v0 returned observation with dtype float64, its space says uint8"):
        GymnasiumEmulator("Fraction-v0", {"observation": spaces.Box(0, 255, (2,), np.uint8)}).reset(1)


@pytest.mark.parametrize(
    "id, words",
    [
        ("cartpole-v1", "emulator.id=cartpole-v1: .*close ids: CartPole-v1"),
        ("CartPole-v9", "emulator.id=CartPole-v9: .*CartPole-v1"),
        ("Nowhere/Nothing-v0", "emulator.id=Nowhere/Nothing-v0: .*package:id"),
        ("no_such_package:Game-v0", "emulator.id=no_such_package:Game-v0 cannot be made: No module"),
    ],
)
def test_unknown_id_is_told_in_one_line(id, words):
    with pytest.raises(UserError, match=words) as error:
        GymnasiumEmulator(id)
    assert "\n" not in str(error.value)


def test_unknown_setting_is_told():
    with pytest.raises(UserError, match=r"emulator.settings=.*'speed': 3.*CartPole-v1"):
        GymnasiumEmulator("CartPole-v1", {"speed": 3})


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(UserError, match=r"pip install 'mpirl\[gymnasium\]'"):
        GymnasiumEmulator("CartPole-v1")
