"""Windows: every step of an archive has one use, the same frames as in the game, and the true return ahead of it."""

import numpy as np
import pytest
import torch
from recorded import length_of, record, reward_of

from mpirl.archive import survey as survey_module
from mpirl.archive.reader import Segment
from mpirl.archive.survey import survey
from mpirl.archive.windows import EXTRAS, Purpose, Use, find_windows, is_held_out, read_windows
from mpirl.models.stacking import observer
from mpirl.specs import StepType
from mpirl.trajectory import Layout


@pytest.fixture(params=[128, 3, 2], ids=["whole iterations", "cut in unequal pieces", "in three"])
def longest(request, monkeypatch):
    monkeypatch.setattr(survey_module, "LONGEST_WINDOW", request.param)


def all_windows(directory, **purpose):
    """The windows that are read of an archive, each {field: array}."""
    found = survey(str(directory))
    windows = find_windows(found, Purpose(**purpose))
    layout = Layout(found.specs, found.steps, windows.purpose.context, extras=EXTRAS)
    read = []
    for unit in windows.units:
        with Segment(unit.part.path) as segment:
            read += read_windows(segment, windows, unit, range(len(unit.lane)), layout)
    return windows, read


def steps_of(read, *uses):
    """(episode, age, window, t) of every step of these uses; its observation tells."""
    context = len(read[0]["observation"]) - len(read[0]["use"])
    for window in read:
        for t in range(len(window["reward"])):
            if window["use"][t] in uses:
                number, age = window["observation"][context + t]
                yield int(number) - 1, int(age), window, t


def test_every_true_step_is_there_once_with_one_use(tmp_path, longest):
    finished = record(tmp_path)
    windows, read = all_windows(tmp_path, validation=0.3)
    seen = [(number, age) for number, age, _, _ in steps_of(read, Use.TRAINING, Use.VALIDATION)]
    assert len(seen) == len(set(seen)) == windows.totals.sum()
    assert set(seen) >= {(number, age) for number, length in finished.items() for age in range(length)}
    assert all(is_held_out(np.array([number]), 0.3)[0] for number, _, _, _ in steps_of(read, Use.VALIDATION))
    assert not any(is_held_out(np.array([number]), 0.3)[0] for number, _, _, _ in steps_of(read, Use.TRAINING))
    assert windows.totals[Use.TRAINING] and windows.totals[Use.VALIDATION]


def test_actions_rewards_and_ends_belong_to_their_observation(tmp_path, longest):
    record(tmp_path)
    for number, age, window, t in steps_of(all_windows(tmp_path)[1], Use.TRAINING, Use.VALIDATION):
        assert (window["action"][t], window["reward"][t]) == ((number + age) % 4, reward_of(number, age))
        assert window["discount"][t] == (age + 1 < length_of(number) or number % 2)
        assert (window["step_type"][t + 1] == StepType.LAST) >= (age + 1 == length_of(number))


@pytest.mark.parametrize("context, wanted", [(3, 3), (3, 1), (1, 0)])
def test_stacks_show_the_frames_of_the_step_s_own_episode(tmp_path, longest, context, wanted):
    record(tmp_path, context=context)
    for window in all_windows(tmp_path, context=wanted)[1]:
        frames, kind = torch.from_numpy(window["observation"])[None], torch.from_numpy(window["step_type"])[None]
        shown = observer({"observation": frames}, kind, wanted + 1)(torch.arange(len(window["use"])))["observation"]
        for number, age, _, t in steps_of([window], Use.TRAINING, Use.VALIDATION):
            stack = shown[t].view(-1, 2).tolist()
            assert stack == [[number + 1, k] if k >= 0 else [0, 0] for k in range(age - wanted, age + 1)]


def test_steps_whose_frames_are_not_in_the_archive_are_left_out(tmp_path, longest):
    finished = record(tmp_path, context=1)
    windows, read = all_windows(tmp_path, context=3)
    assert windows.totals[Use.NO_CONTEXT] > 0
    for window in read:
        frames, kind = torch.from_numpy(window["observation"])[None], torch.from_numpy(window["step_type"])[None]
        shown = observer({"observation": frames}, kind, 4)(torch.arange(len(window["use"])))["observation"]
        for number, age, _, t in steps_of([window], Use.TRAINING, Use.VALIDATION):
            assert shown[t].tolist() == [[number + 1, k] if k >= 0 else [0, 0] for k in range(age - 3, age + 1)]
    assert windows.totals.sum() >= sum(finished.values())


@pytest.mark.parametrize("gamma, clip", [(1.0, None), (0.9, 2.0)])
def test_returns_ahead_are_those_to_the_end_of_the_episode(tmp_path, longest, gamma, clip):
    finished = record(tmp_path)
    num_unknown = 0
    for number, age, window, t in steps_of(all_windows(tmp_path, gamma=gamma, reward_clip=clip)[1], Use.TRAINING):
        if number not in finished:
            num_unknown += 1
            assert np.isnan(window["return_to_go"][t]) and window["row"][t] == -1
            continue
        rewards = [min(reward_of(number, k), clip or np.inf) for k in range(age, length_of(number))]
        assert window["return_to_go"][t] == pytest.approx(sum(gamma**k * reward for k, reward in enumerate(rewards)))
        assert window["steps_to_go"][t] == length_of(number) - age
    assert num_unknown


def test_episodes_that_are_not_chosen_are_not_read_and_accounted_for(tmp_path, longest):
    finished = record(tmp_path)
    found = survey(str(tmp_path))
    chosen = found.episodes["id"] % 4 == 1
    windows, read = all_windows(tmp_path, chosen=chosen)
    totals = windows.totals
    assert {number for number, *_ in steps_of(read, Use.TRAINING, Use.VALIDATION)} == set(found.episodes["id"][chosen])
    assert totals[Use.LEFT_OUT] == sum(length for number, length in finished.items() if number % 4 != 1)
    assert totals[Use.UNFINISHED] > 0 and totals.sum() == all_windows(tmp_path)[0].totals.sum()
    in_windows = sum(np.bincount(window["use"][:-1], minlength=len(Use)) for window in read)
    assert (in_windows + windows.unread)[: Use.SEAM].tolist() == totals[: Use.SEAM].tolist()


def test_the_share_held_out_is_that_asked_for_and_never_changes():
    ids = np.arange(20000)
    for share in (0.0, 0.1, 0.5):
        assert is_held_out(ids, share).mean() == pytest.approx(share, abs=0.01)
    assert not (is_held_out(ids, 0.1) & ~is_held_out(ids, 0.5)).any()
    assert np.flatnonzero(is_held_out(np.arange(60), 0.1)).tolist() == HELD_OUT


HELD_OUT = [10, 18, 21, 41, 48]
