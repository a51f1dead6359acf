"""Workers: a counting emulator notices every lost, doubled or mixed-up step, in the trajectory and in what the policy saw."""

import numpy as np
import pytest
import torch
from counting import COUNTS, NUM_ACTIONS, POSITION, RUN_SEED, Counting, collect, make_worker

from mpirl import seeds
from mpirl.models.distributions import Categorical, DiagonalGaussian
from mpirl.models.stacking import ages, gather_stacks
from mpirl.assembly import draw_noise
from mpirl.schedule import Command
from mpirl.specs import StepType
from mpirl.trajectory import NO_SEED, is_step


def joined(parts, name):
    """Moments 0 .. times * T of a per-observation field without context, [N, times * T + 1, ...]."""
    return np.concatenate([part[name][:, :-1] for part in parts] + [parts[-1][name][:, -1:]], axis=1)


def replay(lengths, lane, total, reseed_every, actions):
    """The moments of a lane, played naively: dicts of everything that belongs to a moment."""
    emulator, episode, last, moments = Counting(np.roll(lengths, -lane), reseed_every), 0, True, []
    for action in [None, *actions]:
        reward, discount, seed, lives = 0.0, 1.0, NO_SEED, 99
        if last:
            if episode % reseed_every == 0:
                seed = seeds.episode_seed(RUN_SEED, lane + episode * total)
            observation = emulator.reset(None if seed == NO_SEED else seed)
            kind, last, episode = StepType.FIRST, False, episode + 1
        else:
            observation, reward, terminated, truncated, extras = emulator.step(action)
            discount, lives, last = 0.0 if terminated else 1.0, extras["lives"], terminated or truncated
            kind = StepType.LAST if last else StepType.MID
        moments.append({COUNTS: observation["counts"], POSITION: observation["position"], "step_type": kind, "lives": lives})
        moments[-1] |= {"reward": reward, "discount": discount, "seed": seed, "episode": lane + (episode - 1) * total}
    return moments


LENGTHS = [(1,), (3,), (1, 2, 3, 4, 5, 6, 7), (2, 1, 9, 1, 1, 4)]


@pytest.mark.parametrize("reseed_every", [1, 3])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("context", [0, 3])
def test_collected_moments_are_those_of_a_naive_player(steps, lengths, reseed_every, context):
    times, total = 30 // steps, 6
    worker = make_worker(steps, lengths, num_lanes=3, first=2, total=total, context=context, reseed_every=reseed_every)
    parts = collect(worker, times)
    actions = np.concatenate([part["action"] for part in parts], axis=1)
    for lane in range(3):
        moments = replay(lengths, 2 + lane, total, reseed_every, actions[lane])
        for name in ("step_type", "episode", "seed", "lives"):
            np.testing.assert_array_equal(joined(parts, name)[lane], [moment[name] for moment in moments], name)
        for name in ("reward", "discount"):
            found = np.concatenate([part[name][lane] for part in parts])
            np.testing.assert_array_equal(found, [moment[name] for moment in moments[1:]], name)
        for name in (COUNTS, POSITION):
            frames = [{**part, name: part[name][:, context:]} for part in parts]
            np.testing.assert_array_equal(joined(frames, name)[lane], [moment[name] for moment in moments], name)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_stacks_show_the_frames_of_their_own_episode_only(steps, lengths, context=3):
    worker = make_worker(steps, lengths, num_lanes=2, context=context)
    parts = collect(worker, times=28 // steps)
    counts = joined([{COUNTS: part[COUNTS][:, context:]} for part in parts], COUNTS)  # frames only [N, moments, 3]
    step_type = joined(parts, "step_type")
    for number, part in enumerate(parts):
        age, frames = ages(torch.from_numpy(part["step_type"])), torch.from_numpy(part[COUNTS])
        stacks = gather_stacks(frames, age, torch.arange(2 * (steps + 1)), context + 1)
        stacks = stacks.numpy().reshape(2, steps + 1, context + 1, 3)
        for t in range(steps + 1):
            expected = naive_stacks(counts, step_type, number * steps + t, context + 1)
            np.testing.assert_array_equal(stacks[:, t], expected, f"learner, collect {number}, t={t}")
            seen = worker.policy.seen[number * (steps + 1) + t][0][COUNTS]
            np.testing.assert_array_equal(seen, expected, f"policy, collect {number}, t={t}")


def naive_stacks(frames, step_type, moment, size):
    """[N, size, ...]: walk back from the moment to the episode's FIRST, zeros before it."""
    stacks = np.zeros((len(frames), size, *frames.shape[2:]), frames.dtype)
    for lane in range(len(frames)):
        for back in range(size):
            stacks[lane, size - 1 - back] = frames[lane, moment - back]
            if step_type[lane, moment - back] == StepType.FIRST:
                break
    return stacks


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_context_frames_of_an_earlier_episode_are_zero(steps, context=3):
    parts = collect(make_worker(steps, (1, 2, 3, 4), context=context), times=12)
    for before, part in zip(parts, parts[1:]):
        position = int(part[POSITION][0, context])  # of o_0, counted from 1
        shown = part[POSITION][0, :context]
        np.testing.assert_array_equal(shown, [max(0, position - back) for back in range(context, 0, -1)])
        assert part[POSITION][0, context] == before[POSITION][0, -1]


def test_last_moment_of_one_collect_is_the_first_of_the_next():
    for lengths in LENGTHS:
        parts = collect(make_worker(4, lengths, num_lanes=3), times=6)
        for before, part in zip(parts, parts[1:]):
            for name in (COUNTS, POSITION, "step_type", "episode", "seed", "lives", "value"):
                np.testing.assert_array_equal(part[name][:, 0], before[name][:, -1], name)


def test_seam_after_last_is_no_step_and_starts_the_lanes_next_episode():
    (part,) = collect(make_worker(12, (3,), num_lanes=2, first=1, total=5), times=1)
    np.testing.assert_array_equal(is_step(part["step_type"])[0], ([True] * 3 + [False]) * 3)
    lanes, ts = np.nonzero(~is_step(part["step_type"]))
    assert len(ts) == 6
    assert (part["step_type"][lanes, ts + 1] == StepType.FIRST).all()
    assert not part["reward"][lanes, ts].any() and not part["log_prob"][lanes, ts].any()
    assert (part["discount"][lanes, ts] == 1).all()
    np.testing.assert_array_equal(part["episode"][:, 0], [1, 2])
    np.testing.assert_array_equal(part["episode"][lanes, ts + 1], part["episode"][lanes, ts] + 5)


def test_truncation_is_last_with_discount_1_and_termination_with_0():
    (part,) = collect(make_worker(12, (3,)), times=1)
    np.testing.assert_array_equal(part["discount"][0, [2, 6, 10]], [0, 1, 0])
    assert (part["step_type"][0, [3, 7, 11]] == StepType.LAST).all()


def test_collected_counts_true_steps_since_the_start():
    worker, counted = make_worker(5, (1, 2, 4), num_lanes=3), np.zeros(3, np.int64)
    for part in collect(worker, times=8):
        counted += is_step(part["step_type"]).sum(1)
        np.testing.assert_array_equal(part["collected"], counted)
    assert 0 < counted.min() and counted.max() < 40


def test_version_and_core_are_those_at_the_start_of_the_collect():
    parts = collect(make_worker(4, num_lanes=2), times=3)
    assert [part["version"].tolist() for part in parts] == [[10, 10], [20, 20], [30, 30]]
    assert [part["core"].tolist() for part in parts] == [[[0], [0]], [[4], [4]], [[8], [8]]]


def test_extras_of_the_algorithm_cover_the_bootstrap_observation():
    parts = collect(make_worker(4, (3,), num_lanes=2), times=2)
    for part in parts:
        np.testing.assert_array_equal(part["value"], part[COUNTS][:, :, 0])


@pytest.mark.parametrize("distribution", [Categorical(NUM_ACTIONS), DiagonalGaussian((2,))])
def test_noise_has_the_shape_that_the_distribution_takes(distribution):
    noise = draw_noise(distribution, np.random.default_rng(0), 6)
    assert noise.shape == (6, distribution.noise_size) and noise.dtype == np.float32


def test_two_workers_play_what_one_would():
    whole = collect(make_worker(6, (3, 1, 4), num_lanes=4, total=4), times=4)
    parts = [make_worker(6, (3, 1, 4), num_lanes=n, first=first, total=4) for first, n in ((0, 1), (1, 3))]
    for one, left, right in zip(whole, *(collect(part, times=4) for part in parts)):
        for name in one:
            np.testing.assert_array_equal(one[name], np.concatenate([left[name], right[name]]), name)
    actions = np.concatenate([part["action"] for part in whole], axis=1)
    assert len({row.tobytes() for row in actions}) == 4, "lanes share their noise"


def test_actions_depend_on_the_iteration_and_not_on_the_history():
    early, late = make_worker(6, num_lanes=2), make_worker(6, num_lanes=2)
    at_5 = collect(early, times=5)[-1]["action"]
    np.testing.assert_array_equal(collect(late, times=1, first_iteration=5)[0]["action"], at_5)
    assert (collect(late, times=1, first_iteration=6)[0]["action"] != at_5).any()


def test_resumed_lanes_start_at_their_next_episode_with_its_seed():
    (part,) = collect(make_worker(4, num_lanes=2, total=2, index=[4, 9], reseed_every=4), times=1)
    np.testing.assert_array_equal(part["episode"][:, 0], [8, 19])
    np.testing.assert_array_equal(part["seed"][:, 0], [seeds.episode_seed(RUN_SEED, 8), seeds.episode_seed(RUN_SEED, 19)])


def test_greedy_worker_draws_no_noise_and_repeats_itself_after_a_restart():
    worker = make_worker(5, (3,), num_lanes=2, context=2, greedy=True)
    first = collect(worker, times=3)
    worker.restart()
    for before, again in zip(first, collect(worker, times=3)):
        for name in ("episode", "seed", "action", "core", POSITION):
            np.testing.assert_array_equal(before[name], again[name], name)


def test_worker_without_lanes_collects_nothing_and_shows_life():
    worker, signs = make_worker(4, num_lanes=0, total=3), []
    worker._alive = lambda: signs.append(True)
    worker.collect(Command(1, 0))
    assert signs and not worker.policy.seen and worker.trajectory["step_type"].shape == (0, 5)
