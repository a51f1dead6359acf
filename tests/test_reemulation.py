"""Re-emulation: what was archived is played again bit for bit, and a single planted bit is found where it was planted."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from archived import CARTPOLE, CATCH, DQN, MACHADO, PENDULUM, flip, record

from mpirl.archive.reader import Segment, segments
from mpirl.emulators.catch import Catch
from mpirl.reemulation import Emulators, Tally, verify
from mpirl.recording import differing
from mpirl.specs import StepType
from mpirl.stretches import survey


def verified(run, longest=20_000, chosen=None) -> Tally:
    tally = Tally()
    with Emulators() as emulators:
        for stretch in survey(run / "archive", longest).stretches:
            tally.add(verify(stretch, emulators, chosen))
    return tally


def counted(run) -> tuple[int, int]:
    """Episodes that ended and true steps in an archive."""
    episodes = steps = 0
    for path in segments(run / "archive"):
        with h5py.File(path) as file:
            steps += int((file["step_type"][:, :, :-1] != StepType.LAST).sum())
            episodes += len(file["episodes/id"])
    return episodes, steps


def value(run, iteration, name, index):
    for path in segments(run / "archive"):
        with Segment(path) as segment:
            for place in np.flatnonzero(segment.iterations == iteration):
                return segment.part(name, int(place), index[0])[index[1:]]


CASES = {
    "catch": (CATCH, {"context": 3}),
    "cartpole": (CARTPOLE, {"context": 1}),
    "continuous actions": (PENDULUM, {"steps": 120}),
    "one step an iteration": (CATCH, {"steps": 1, "iterations": range(1, 30)}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("longest", [0, 20, 20_000], ids=["cut at every seed point", "cut now and then", "in one"])
def test_what_was_archived_is_played_again(tmp_path, case, longest):
    emulator, settings = CASES[case]
    run = record(tmp_path, emulator, **settings)
    tally = verified(run, longest)
    assert not tally.divergences and (tally.episodes, tally.steps) == counted(run) and tally.steps > 0


@pytest.mark.atari
@pytest.mark.parametrize("game", ["pong", "breakout", "space_invaders"])
@pytest.mark.parametrize("protocol", [DQN, MACHADO], ids=["dqn", "machado"])
def test_atari_is_played_again(tmp_path, game, protocol):
    run = record(tmp_path, {**protocol, "game": game}, steps=48, iterations=range(1, 4), context=3)
    tally = verified(run)
    assert not tally.divergences and (tally.episodes, tally.steps) == counted(run) and tally.episodes >= 6


def test_every_rank_plays_with_its_own_settings(tmp_path):
    run = record(tmp_path, CATCH, lanes=(1, 2), changes=[{}, {}, {"latency": 0.0, "columns": 5}])
    assert not verified(run).divergences
    run = record(tmp_path / "b", CARTPOLE, lanes=(1, 2), changes=[{}, {}, {"settings": {"sutton_barto_reward": True}}])
    assert not verified(run).divergences
    for path in segments(run / "archive"):
        with h5py.File(path, "r+") as file:
            file.attrs["header"] = file.attrs["header"].replace('"sutton_barto_reward": true', '"sutton_barto_reward": false')
    assert {found.lane for found in verified(run).divergences} == {1, 2}


def test_a_resume_ends_the_stretches_before_it(tmp_path):
    record(tmp_path, CATCH, iterations=range(1, 4))
    run = record(tmp_path, CATCH, iterations=range(4, 8), first_episode=50)
    found = survey(run / "archive")
    assert len(found.stretches) == 4 and not found.unplayable and found.under_way > 0
    assert not (tally := verified(run)).divergences and (tally.episodes, tally.steps) == counted(run)


def test_a_resume_with_other_lanes_is_followed(tmp_path):
    record(tmp_path, CATCH, iterations=range(1, 4))
    run = record(tmp_path, CATCH, lanes=(3,), iterations=range(4, 6), first_episode=50)
    assert not (tally := verified(run)).divergences and (tally.episodes, tally.steps) == counted(run)


@pytest.mark.atari
def test_what_follows_missing_iterations_is_not_playable_until_the_next_seed_point(tmp_path):
    run = record(tmp_path, {**MACHADO, "reseed_every": 3}, iterations=range(1, 9), segment_iterations=1)
    segments(run / "archive")[2].unlink()
    found, tally = survey(run / "archive"), verified(run)
    ((reason, steps),) = found.unplayable.items()
    assert reason == "no seed point since the missing iterations 3 to 3"
    assert not tally.divergences and 0 < steps == counted(run)[1] - tally.steps


def test_an_archive_without_observations_is_compared_in_what_it_has(tmp_path):
    run = record(tmp_path, CATCH)
    for path in segments(run / "archive"):
        with h5py.File(path, "r+") as file:
            del file["observation"]
    assert not verified(run).divergences
    flip(run, 2, "reward", (1, 3))
    assert [found.field for found in verified(run).divergences] == ["reward"]


@pytest.mark.parametrize(
    "name, index, bit",
    [
        ("observation", (1, 3 + 7, 2, 3), 0),
        ("observation", (1, 3 + 0, 2, 3), 31),  # the repetition of the iteration before: a zero's sign
        ("observation", (1, 2, 0, 0), 5),  # context
        ("reward", (1, 7), 0),
        ("discount", (1, 7), 23),
        ("step_type", (1, 7), 1),
    ],
)
def test_one_bit_is_found_where_it_was_planted(tmp_path, name, index, bit):
    run = record(tmp_path, CATCH, context=3)
    flip(run, 2, name, index, bit)
    first, *more = verified(run).divergences
    t = index[1] - (3 if name == "observation" else 0)
    assert (first.iteration, first.lane, first.t, first.field) == (2, 1, t, name) and not more
    assert first.episode == value(run, 2, "episode", (1, max(t, 0)))
    types = value(record(tmp_path / "sound", CATCH, context=3), 2, "step_type", (1, slice(None)))
    firsts = [k for k in range(max(t, 0) + 1) if types[k] == StepType.FIRST]
    assert not firsts or first.step == max(t, 0) - firsts[-1]


def test_every_bit_of_every_compared_field_counts(tmp_path):
    random, sound = np.random.default_rng(0), record(tmp_path / "sound", CARTPOLE)
    for number in range(25):
        run = tmp_path / str(number)
        run.mkdir()
        (run / "archive").mkdir()
        for path in segments(sound / "archive"):
            (run / "archive" / path.name).write_bytes(path.read_bytes())
        name = random.choice(["observation", "reward", "discount", "step_type"])
        lane, t, iteration = (int(random.integers(n)) for n in (2, 16, 4))
        index = (lane, t, int(random.integers(4))) if name == "observation" else (lane, t)
        flip(run, iteration + 1, name, index, int(random.integers(8 if name == "step_type" else 32)))
        first = min(verified(run).divergences)
        assert (first.iteration, first.lane, first.field, first.t) == (iteration + 1, lane, name, t), name


def test_another_action_shows_in_what_follows(tmp_path):
    run = record(tmp_path, PENDULUM, steps=20)
    actions = value(run, 2, "action", (1, slice(None), 0))
    t = int(np.flatnonzero(np.abs(actions[:-1]) < 1)[0])  # those beyond the bounds, 2, are clipped
    flip(run, 2, "action", (1, t, 0), bit=22)
    first, *more = verified(run).divergences
    assert (first.iteration, first.lane) == (2, 1) and not more
    assert (first.field, first.t) in (("observation", t + 1), ("reward", t))


@pytest.mark.atari
@pytest.mark.parametrize("emulator", [CATCH, DQN], ids=["catch", "atari"])
def test_an_action_that_there_is_not_is_a_divergence(tmp_path, emulator):
    run = record(tmp_path, emulator)
    flip(run, 2, "action", (0, 6), bit=40)
    first, *more = verified(run).divergences
    assert (first.iteration, first.lane, first.t, first.field) == (2, 0, 6, "action") and not more


def test_the_episode_table_is_compared(tmp_path):
    run = record(tmp_path, CATCH)
    flip(run, 1, "episodes/length", (2,))
    (found,) = verified(run).divergences
    assert (found.field, found.episode, found.stored, found.played) == ("episodes/length", 1, "4", "5")


def test_verifying_goes_on_at_the_next_seed_point(tmp_path):
    run = record(tmp_path, CATCH, steps=40)
    flip(run, 1, "observation", (0, 3, 0, 0))
    flip(run, 2, "observation", (0, 3, 0, 0))
    tally = verified(run)
    assert [found.iteration for found in tally.divergences] == [1, 2]
    assert tally.steps > counted(run)[1] - 15


def test_only_the_chosen_episodes_are_compared(tmp_path):
    run = record(tmp_path, CATCH)
    flip(run, 1, "observation", (0, 2, 0, 0))  # in episode 0
    assert (tally := verified(run, chosen={2, 3})).episodes == 2 and not tally.divergences and tally.steps == 10
    assert verified(run, chosen={0, 3}).divergences[0].episode == 0


def test_an_emulator_that_raises_is_a_divergence(tmp_path, monkeypatch):
    run = record(tmp_path, CATCH)
    monkeypatch.setattr(Catch, "step", lambda self, action: 1 / 0)
    assert "ZeroDivisionError" in verified(run).divergences[0].played


def test_another_shape_is_a_divergence(tmp_path):
    run = record(tmp_path, CATCH)
    for path in segments(run / "archive"):
        with h5py.File(path, "r+") as file:
            file.attrs["header"] = file.attrs["header"].replace('"rows": 6', '"rows": 7')
    first = verified(run).divergences[0]
    assert first.field == "specs" and "[6, 5]" in first.stored and "[7, 5]" in first.played


def test_nan_equals_nan_and_zeros_have_signs():
    stored = np.array([[np.nan, 0.0], [0.0, 1.0], [0.0, 1.0]], np.float32)
    played = np.array([[np.nan, 0.0], [-0.0, 1.0], [0.0, np.nan]], np.float32)
    assert differing(stored, played).tolist() == [False, True, True]
    assert differing(np.zeros((0, 4)), np.zeros((0, 4))).tolist() == []
