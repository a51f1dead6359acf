"""Atari lanes."""

import sys

import numpy as np
import pytest

from mpirl.emulators.ale import AtariLanes
from mpirl.emulators.base import Frame
from mpirl.errors import UserError
from mpirl.specs import ArraySpec, StepType
from mpirl.trajectory import NO_SEED

pytest.importorskip("ale_py")
pytestmark = pytest.mark.atari

DQN = dict(repeat_action_probability=0.0, full_action_space=False, noop_max=30, use_fire_reset=True, life_loss=True)
FIRE = 1


def play(lanes: AtariLanes, num_steps: int, action: int = 0, seed: int = NO_SEED) -> list[Frame]:
    """Frames of a seeded reset and of `num_steps` steps; lanes that end get `seed`."""
    frames = [Frame.allocate(lanes.specs, lanes.num_lanes) for _ in range(num_steps + 1)]
    lanes.reset(np.arange(lanes.num_lanes), frames[0])
    for frame in frames[1:]:
        lanes.step(np.full(lanes.num_lanes, action, np.int64), np.full(lanes.num_lanes, seed, np.int64), frame)
    return frames


def column(frames: list[Frame], field: str) -> list[float]:
    return [getattr(frame, field)[0].item() for frame in frames]


@pytest.mark.parametrize("seed", [NO_SEED, 5])
def test_episode_cut_at_max_frames_is_truncated_and_starts_again(seed):
    frames = play(AtariLanes(1, "breakout", **DQN, max_episode_frames=8), 4, seed=seed)
    first, mid, last = StepType.FIRST, StepType.MID, StepType.LAST
    assert column(frames, "step_type") == [first, mid, last, first, mid]
    assert column(frames, "discount") == [1, 1, 1, 1, 1]
    assert column(frames, "reward") == [0, 0, 0, 0, 0]


def test_score_is_raw_and_the_end_of_the_game_is_a_termination():
    frames = play(AtariLanes(1, "breakout", **DQN), 400, FIRE)  # the still paddle returns a ball or two, then loses all
    end = column(frames, "step_type").index(StepType.LAST)
    lives = [int(frame.extras["lives"][0]) for frame in frames]
    assert lives[0] == 5 and lives[end] == 0 and lives[end + 1] == 5
    assert frames[end].discount[0] == 0.0
    assert (frames[end + 1].step_type[0], frames[end + 1].reward[0], frames[end + 1].discount[0]) == (StepType.FIRST, 0, 1)
    assert StepType.LAST not in column(frames[:end], "step_type")  # a lost life is no end


def test_rewards_above_one_are_kept():
    frames = play(AtariLanes(2, "space_invaders", **DQN), 150, FIRE)
    assert max(frame.reward.max() for frame in frames) >= 5


def test_action_of_a_lane_that_ended_is_ignored():
    lanes = AtariLanes(1, "pong", **DQN, max_episode_frames=4)
    play(lanes, 1)
    lanes.step(np.array([10**6]), np.array([NO_SEED]), Frame.allocate(lanes.specs, 1))


def test_action_that_the_game_does_not_have_is_refused():
    lanes = AtariLanes(1, "pong", **DQN)
    with pytest.raises(AssertionError, match="of 6"):  # ale-py alone would wait for ever
        play(lanes, 1, action=6)


def test_zero_lanes_have_the_specs_of_many():
    none = AtariLanes(0, "pong", **DQN)
    assert none.specs == AtariLanes(2, "pong", **DQN).specs
    play(none, 2)
    none.close()


def test_specs_follow_the_settings():
    settings = {**DQN, "full_action_space": True, "life_loss": False, "grayscale": False, "height": 20, "width": 30}
    colour = AtariLanes(1, "Pong", **settings)
    assert colour.specs.observation["observation"] == ArraySpec((20, 30, 3), "uint8", low=0.0, high=255.0)
    assert colour.specs.action.num_values == 18 and not colour.specs.extras
    frame = play(colour, 1)[-1]
    np.testing.assert_array_equal(colour.render(0), frame.observation["observation"][0])
    assert colour.render(0).std() > 0


def test_grayscale_picture_has_three_channels():
    lanes = AtariLanes(1, "pong", **DQN)
    play(lanes, 1)
    assert lanes.render(0).shape == (84, 84, 3)


@pytest.mark.parametrize("game", ["space_invaders", "SpaceInvaders", "spaceinvaders"])
def test_game_is_known_by_every_spelling(game):
    assert AtariLanes(0, game, **DQN).specs.action.num_values == 6


def test_unknown_game_is_told_with_close_names():
    with pytest.raises(UserError, match="emulator.game=Pongg: no such Atari game; close names: pong"):
        AtariLanes(1, "Pongg", **DQN)
    with pytest.raises(UserError, match="known games: adventure, air_raid"):
        AtariLanes(1, "zzzzzz", **DQN)


@pytest.mark.parametrize("name, value", [("frame_skip", 0), ("noop_max", -1), ("num_threads", 0), ("reseed_every", 1.5)])
def test_setting_out_of_range_is_named(name, value):
    with pytest.raises(UserError, match=f"emulator.{name}={value}"):
        AtariLanes(1, "pong", **{**DQN, name: value})


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py.vector_env", None)
    with pytest.raises(UserError, match=r"pip install 'mpirl\[atari\]'"):
        AtariLanes(1, "pong", **DQN)
