"""ReplayBuffer: its targets, stacks, order of eviction and draws are those of the definitions."""

import numpy as np
import pytest
import torch

from mpirl.algorithms.buffer import ReplayBuffer
from mpirl.errors import UserError
from mpirl.models.stacking import observer

from replaying import FIRST, LAST, MID, joined, play, slow_targets

GAMMA = 0.9


def filled(batches, capacity=1000, **settings):
    buffer = ReplayBuffer(["observation"], capacity, gamma=GAMMA, **settings)
    for batch in batches:
        buffer.append(batch)
    return buffer


def value(frame):
    return np.sin(frame)


def frames(buffer, rows):
    """The number that the newest frame of each row shows."""
    shown = buffer.observe(rows)["observation"]
    return (shown if buffer.frame_stack == 1 else shown[:, -1])[:, 0].numpy()


def targets(buffer):
    """As `slow_targets`, of all that can be drawn."""
    rows = buffer.drawable()
    found = buffer._action[rows], buffer._returns[rows] + buffer._factor[rows] * value(frames(buffer, buffer._next[rows]))
    return dict(zip(frames(buffer, rows).tolist(), zip(*(column.tolist() for column in found))))


def assert_equal_targets(one, other):
    assert one.keys() == other.keys()
    for frame, (action, target) in one.items():
        assert other[frame][0] == action and other[frame][1] == pytest.approx(target, abs=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_targets_are_the_slow_references_through_seams_and_ends_of_batches(n):
    for seed in range(5):
        batches = play(seed=seed, steps=4, iterations=6)
        assert_equal_targets(targets(filled(batches, n_step=n)), slow_targets(joined(batches), n, GAMMA, value))


@pytest.mark.parametrize("discount", [0.0, 1.0])
def test_truncation_bootstraps_from_the_last_observation_and_termination_does_not(discount):
    batch = play(num_lanes=1, steps=3, iterations=1, ends=0)[0]
    batch["step_type"][0] = torch.tensor([FIRST, MID, LAST, FIRST])
    batch["discount"][0, 1] = discount
    found = targets(filled([batch], n_step=3))
    expected = batch["reward"][0, 1].item() + discount * GAMMA * value(3)
    assert found[2][1] == pytest.approx(expected, abs=1e-6) and 3 not in found  # frame 3 is the last: a seam


def test_seams_cannot_be_drawn():
    batches = play(ends=0.5, iterations=10)
    buffer = filled(batches)
    assert not buffer._is_last[buffer.drawable()].any()
    assert buffer.num_steps == sum(int((batch["step_type"][:, :-1] != LAST).sum()) for batch in batches)
    assert len(buffer.drawable()) == buffer.num_steps  # with n = 1, every true step has a target


@pytest.mark.parametrize("frame_stack", [2, 4])
def test_stacks_are_those_of_one_long_trajectory(frame_stack):
    context = frame_stack - 1
    for seed in range(4):
        batches = play(steps=3, iterations=8, context=context, seed=seed)
        buffer, long = filled(batches, frame_stack=frame_stack), joined(batches, context)
        observe = observer({"observation": long["observation"]}, long["step_type"], frame_stack)
        position = {number: i for i, number in enumerate(long["observation"][:, context:, 0].flatten().tolist())}
        for rows in (buffer.drawable(), buffer._next[buffer.drawable()]):
            expected = observe(torch.tensor([position[number] for number in frames(buffer, rows).tolist()]))
            assert torch.equal(buffer.observe(rows)["observation"], expected["observation"])
            np.testing.assert_array_equal(
                buffer.step_types(rows), [long["step_type"].flatten()[position[n]] for n in frames(buffer, rows).tolist()]
            )


def test_a_stream_that_begins_in_mid_episode_has_the_stacks_of_its_context():
    batches = play(steps=5, iterations=4, context=3, seed=2, ends=0.1)
    buffer = filled(batches[2:], frame_stack=4)
    whole = filled(batches, frame_stack=4)
    stacks = {n: stack for n, stack in zip(frames(whole, whole.drawable()), whole.observe(whole.drawable())["observation"])}
    rows = buffer.drawable()
    assert len(rows) > 12
    for number, stack in zip(frames(buffer, rows), buffer.observe(rows)["observation"]):
        assert torch.equal(stack, stacks[number])


@pytest.mark.parametrize("frame_stack", [1, 3])
def test_the_oldest_rows_go_first_and_stacks_never_show_what_was_overwritten(frame_stack):
    context, capacity = frame_stack - 1, 61
    batches = play(steps=5, iterations=40, context=context, ends=0.08)
    buffer = ReplayBuffer(["observation"], capacity, frame_stack, n_step=2, gamma=GAMMA)
    for i in range(len(batches)):
        buffer.append(batches[i])
        long = joined(batches[: i + 1], context)
        by_time = long["observation"][:, context:, 0].t().flatten().tolist()
        alive = set(by_time[-capacity:])
        expected = slow_targets(long, 2, GAMMA, value)
        whole = filled(batches[: i + 1], capacity=10_000, frame_stack=frame_stack, n_step=2)
        rows = whole.drawable()
        needed = dict(zip(frames(whole, rows).tolist(), whole.observe(rows)["observation"].flatten(1).tolist()))
        seen = {frame: {*needed[frame], frame} - {0} for frame in expected}
        kept = {frame: target for frame, target in expected.items() if seen[frame] <= alive}
        assert_equal_targets(targets(buffer), kept)
    assert len(buffer) == capacity


def test_a_stream_that_breaks_off_bootstraps_from_the_last_observation_there_is():
    batches = play(steps=4, iterations=3, ends=0)
    buffer = filled([batches[0], batches[2]], n_step=3)  # the second is missing
    found = targets(buffer)
    reward = batches[0]["reward"][0]
    assert found[4][1] == pytest.approx(reward[3].item() + GAMMA * value(5), abs=1e-5)
    assert found[3][1] == pytest.approx(reward[2].item() + GAMMA * reward[3].item() + GAMMA**2 * value(5), abs=1e-5)
    assert 9 in found and 12 not in found  # the new stream has begun, and its end waits


def test_every_frame_is_stored_once():
    batches = play(num_lanes=2, steps=4, iterations=5, context=3)
    assert len(filled(batches, frame_stack=4)) == 2 * (4 * 5 + 1 + 3)  # and the context of the first


def test_priorities_decide_how_often_rows_are_drawn():
    buffer = filled(play(num_lanes=1, steps=20, iterations=1, ends=0), exponent=0.5)
    rows = buffer.drawable()
    buffer.prioritise(rows, np.linspace(0, 4, len(rows)))
    drawn = np.concatenate([buffer.draw(20, np.random.default_rng(seed)).rows for seed in range(500)])
    share = np.bincount(drawn, minlength=1000)[rows] / len(drawn)
    expected = np.sqrt(np.linspace(0, 4, len(rows)) + 1e-6)
    np.testing.assert_allclose(share, expected / expected.sum(), atol=0.01)


def test_new_rows_have_the_largest_priority_so_far():
    batches = play(num_lanes=1, steps=10, iterations=2, ends=0)
    buffer = filled(batches[:1], exponent=1.0)
    buffer.prioritise(buffer.drawable()[:1], np.array([5.0]))
    before = set(buffer.drawable())
    buffer.append(batches[1])
    new = np.array([row for row in buffer.drawable() if row not in before])
    np.testing.assert_allclose(buffer._tree.priorities(new), 5.0, rtol=1e-5)


def test_importance_weights_undo_the_draws():
    buffer = filled(play(num_lanes=1, steps=20, iterations=1, ends=0), exponent=1.0)
    rows = buffer.drawable()
    error = np.linspace(0.5, 4, len(rows))
    buffer.prioritise(rows, error)
    assert buffer.weights(rows, 0.0) == pytest.approx(1.0)
    np.testing.assert_allclose(buffer.weights(rows, 1.0), 0.5 / error, rtol=1e-4)  # P w is the same for all
    np.testing.assert_allclose(buffer.weights(rows, 0.5), np.sqrt(0.5 / error), rtol=1e-4)


def test_draws_are_a_function_of_the_generator():
    buffer = filled(play())
    one, two, other = (buffer.draw(32, np.random.default_rng(seed)).rows.tolist() for seed in (1, 1, 2))
    assert one == two != other


def test_a_refilled_buffer_holds_the_same_in_the_same_order():
    batches = play(steps=5, iterations=30, context=2)
    settings = dict(capacity=100, frame_stack=3, n_step=2)
    whole, late = filled(batches, **settings), filled(batches[-12:], **settings)  # 11 x 10 observations fill it
    one, two = whole.drawable(), late.drawable()
    assert len(one) == len(two) > 60
    assert torch.equal(whole.observe(one)["observation"], late.observe(two)["observation"])
    for name in ("_returns", "_factor", "_action"):
        np.testing.assert_array_equal(getattr(whole, name)[one], getattr(late, name)[two])
    follow = lambda buffer, rows: buffer.observe(buffer._next[rows])["observation"]
    assert torch.equal(follow(whole, one), follow(late, two))


def test_a_buffer_smaller_than_two_iterations_is_refused():
    with pytest.raises(UserError, match=r"buffer_size=20 .* 2 lanes x 6 steps: write at least 36"):
        filled(play(), capacity=20)
