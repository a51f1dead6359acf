"""Stacks: the learner's views and gathers, and the worker's, agree with a slow loop."""

import numpy as np
import pytest
import torch

from mpirl.models.stacking import LONG_AGO, ages, gather_stacks, next_age, observer, stack_at, stack_view

torch.set_num_threads(1)
FIRST, MID, LAST = 0, 1, 2
LANES = [[MID, MID, LAST, FIRST, MID, MID, MID, MID], [FIRST, LAST, FIRST, MID, LAST, FIRST, MID, MID]]
STEP_TYPE = torch.tensor(LANES, dtype=torch.uint8)


def trajectory(context):
    """Frames [2, context + 8, 2] that count from 1; lane 1 began at o_0, so its worker zeroed the context."""
    frames = torch.arange(1, 2 * (context + 8) * 2 + 1, dtype=torch.int32).view(2, context + 8, 2)
    frames[1, :context] = 0
    return frames


def slow_stack(frames, context, lane, t, k):
    """The k latest frames of o_t's episode, walking back until FIRST; zeros before it."""
    stack, episode_has_more = [], True
    for back in range(k):
        stack.insert(0, frames[lane, context + t - back] if episode_has_more else torch.zeros_like(frames[0, 0]))
        if t - back >= 0 and STEP_TYPE[lane, t - back] == FIRST:
            episode_has_more = False
    return torch.stack(stack)


def test_ages_count_from_first():
    age = ages(STEP_TYPE)
    assert age[1].tolist() == [0, 1, 0, 1, 2, 0, 1, 2]
    assert age[0, 3:].tolist() == [0, 1, 2, 3, 4]
    assert (age[0, :3] > LONG_AGO // 2).all()


@pytest.mark.parametrize("k, context", [(2, 1), (4, 3), (3, 5)])
def test_gathered_stacks_show_only_their_episode(k, context):
    frames = trajectory(context)
    index = torch.randperm(16)
    stacks = gather_stacks(frames, ages(STEP_TYPE), index, k)
    expected = torch.stack([slow_stack(frames, context, int(i) // 8, int(i) % 8, k) for i in index])
    assert torch.equal(stacks, expected)


def test_gathering_leaves_the_batch_alone():
    frames = trajectory(3)
    gather_stacks(frames, ages(STEP_TYPE), torch.arange(16), 4)
    assert torch.equal(frames, trajectory(3))


@pytest.mark.parametrize("context", [0, 2])
def test_stack_of_one_is_the_plain_observation(context):
    frames = trajectory(context)
    observed = observer({"observation": frames}, STEP_TYPE, 1)(torch.tensor([0, 7, 8, 15]))["observation"]
    assert torch.equal(observed, frames[[0, 0, 1, 1], [context, context + 7, context, context + 7]])


def test_view_copies_nothing_and_gives_every_stack():
    frames = trajectory(3)
    view = stack_view(frames, 8, 4)
    assert view.data_ptr() == frames.data_ptr() and view.shape == (2, 8, 4, 2)
    for t in range(8):
        assert torch.equal(view[:, t], frames[:, t : t + 4])


@pytest.mark.parametrize("k", [1, 2, 4])
def test_workers_stacks_are_the_learners(k):
    frames = trajectory(k - 1)
    age = np.array([100, 100])
    for t in range(8):
        age = next_age(age, STEP_TYPE[:, t].numpy())
        stack = stack_at(frames.numpy(), t, age, k)
        expected = gather_stacks(frames, ages(STEP_TYPE), torch.tensor([t, 8 + t]), k)
        np.testing.assert_array_equal(stack, expected.numpy())


def test_workers_stack_is_a_view_in_the_midst_of_episodes():
    frames = trajectory(3).numpy()
    assert np.shares_memory(stack_at(frames, 2, np.array([9, 3]), 4), frames)
    assert not np.shares_memory(stack_at(frames, 2, np.array([9, 2]), 4), frames)


def test_last_stack_is_the_next_windows_context():
    frames = trajectory(3).numpy()
    age = np.array([4, 2])
    last = stack_at(frames, 7, age, 4)
    following = np.concatenate([last[:, :-1], last[:, -1:], frames[:, :1] * 0 + 7], 1)
    np.testing.assert_array_equal(stack_at(following, 0, age, 4), last)
