"""From a seed point on, a lane is a function of its actions, whichever lane, batch and history plays it."""

import numpy as np
import pytest

from mpirl.emulators.ale import AtariLanes
from mpirl.emulators.base import EmulatorBatch, Frame
from mpirl.emulators.catch import Catch
from mpirl.emulators.gymnasium import GymnasiumEmulator
from mpirl.emulators.lanes import make_lanes
from mpirl.specs import StepType
from mpirl.trajectory import NO_SEED

SEED = 12345
STEPS = 60  # after the seed point; with ends of episodes that are not seeded
MACHADO = dict(repeat_action_probability=0.25, full_action_space=True, use_fire_reset=False, life_loss=True)
EMULATORS = {
    "atari": (AtariLanes, dict(game="breakout", noop_max=30, max_episode_frames=100, **MACHADO)),
    "cartpole": (GymnasiumEmulator, dict(id="CartPole-v1")),
    "catch": (Catch, dict()),
}
NAMES = [pytest.param("atari", marks=pytest.mark.atari), "cartpole", "catch"]
Row = dict[str, np.ndarray]  # what one lane saw at one step


def lane_of(frame: Frame, lane: int) -> Row:
    fields = {**frame.observation, **frame.extras}
    fields |= {name: getattr(frame, name) for name in ("step_type", "reward", "discount")}
    return {name: values[lane].copy() for name, values in fields.items()}


def actions_of(batch: EmulatorBatch, num_steps: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(batch.specs.action.num_values, size=(num_steps, batch.num_lanes))


def follow(batch: EmulatorBatch, lane: int, first: Frame) -> list[Row]:
    """Rows of the lane from a seed point on; the others play on their own and are seeded now and then."""
    actions = actions_of(batch, STEPS, seed=batch.num_lanes)
    actions[:, lane] = actions_of_the_test(batch)
    rows, frame = [lane_of(first, lane)], Frame.allocate(batch.specs, batch.num_lanes)
    for step in range(STEPS):
        seed = np.where(np.arange(batch.num_lanes) == lane, NO_SEED, step)
        batch.step(actions[step], seed, frame)
        rows.append(lane_of(frame, lane))
    return rows


def actions_of_the_test(batch: EmulatorBatch) -> np.ndarray:
    return np.random.default_rng(0).integers(batch.specs.action.num_values, size=STEPS)


def at_reset(batch: EmulatorBatch, lane: int) -> list[Row]:
    """The seed point is a reset of the whole batch."""
    frame = Frame.allocate(batch.specs, batch.num_lanes)
    batch.reset(np.where(np.arange(batch.num_lanes) == lane, SEED, 99), frame)
    return follow(batch, lane, frame)


def at_autoreset(batch: EmulatorBatch, lane: int) -> list[Row]:
    """The seed point is the start of a later episode, amid the others' play."""
    frame = Frame.allocate(batch.specs, batch.num_lanes)
    batch.reset(np.arange(batch.num_lanes), frame)
    for action in actions_of(batch, 1000, seed=7):
        due = np.where((np.arange(batch.num_lanes) == lane) & (frame.step_type == StepType.LAST), SEED, NO_SEED)
        batch.step(action, due, frame)
        if due[lane] == SEED:
            return follow(batch, lane, frame)
    raise AssertionError("no episode ended")


@pytest.mark.parametrize("name", NAMES)
def test_lane_is_a_function_of_seed_and_actions(name):
    target, settings = EMULATORS[name]
    alone, among_three = make_lanes(target, 1, settings), make_lanes(target, 3, settings)
    plays = [at_reset(alone, 0), at_autoreset(alone, 0), at_reset(among_three, 2), at_autoreset(among_three, 2)]
    step_types = [int(row["step_type"]) for row in plays[0]]
    assert step_types.count(StepType.FIRST) >= 2, "the claim is to cover an autoreset without a seed"
    for play in plays[1:]:
        for expected, row in zip(plays[0], play, strict=True):
            for field, value in expected.items():
                np.testing.assert_array_equal(row[field], value, err_msg=field)


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_plays_otherwise(name):
    target, settings = EMULATORS[name]
    batch = make_lanes(target, 1, settings)
    plays = []
    for seed in (1, 2, 3, 4):
        frame = Frame.allocate(batch.specs, 1)
        batch.reset(np.array([seed]), frame)
        plays.append(follow(batch, 0, frame))
    signatures = {b"".join(row["observation"].tobytes() for row in play) for play in plays}
    assert len(signatures) > 1
