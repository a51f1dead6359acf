"""The learner: takes batches in, learns, publishes, and its accounts notice a lost step."""

import numpy as np
import pytest
import torch
from learning import STEPS_PER_BATCH, Recorder, fill, make_learner

from mpirl.schedule import Command


def train(learner, iterations, first=1):
    """Let batches pass as in the loop; the reports."""
    reports = []
    for iteration in range(first, first + iterations):
        command = Command(iteration, learner.version)
        fill(learner, iteration)
        learner.take(command)
        learner.learn()
        reports.append(learner.report(command, evaluation=None))
    return reports


def test_counts_what_it_learned():
    learner = make_learner()
    train(learner, 3)
    assert (learner.iteration, learner.version, learner.steps) == (3, 3, 3 * STEPS_PER_BATCH)
    accounts = learner.accounts
    assert accounts.collected == accounts.gathered == accounts.learned == 3 * STEPS_PER_BATCH
    assert accounts.archived == 0 and not accounts.dropped


def test_learning_changes_the_weights_that_are_broadcast():
    learner = make_learner()
    before = learner._weights.array.copy()
    train(learner, 2)
    np.testing.assert_allclose(learner._weights.array, before + 2, rtol=1e-6)


def test_steps_that_the_algorithm_leaves_are_dropped_with_a_reason():
    learner = make_learner(unused=2)
    train(learner, 3)
    assert learner.accounts.learned == 3 * (STEPS_PER_BATCH - 2)
    assert learner.accounts.dropped == {"not used by the algorithm": 6}


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_step_lost_or_doubled_between_worker_and_learner_ends_the_run(difference):
    learner = make_learner()
    train(learner, 2)
    fill(learner, 3)
    learner.staging["collected"][0] += difference
    learner.take(Command(3, 2))
    with pytest.raises(RuntimeError, match="do not balance"):
        learner.learn()


def test_a_step_lost_in_the_batch_ends_the_run():
    learner = make_learner()
    fill(learner, 1)
    learner.staging["step_type"][0, 2] = 2
    learner.take(Command(1, 0))
    with pytest.raises(RuntimeError, match="collected 7 = gathered 6"):
        learner.learn()


def test_every_batch_goes_to_the_archive_with_its_iteration_version_and_episodes():
    archive = Recorder()
    learner = make_learner(archive=archive)
    train(learner, 2)
    assert archive.written == [(1, 0, 1.0, 1), (2, 1, 2.0, 1)]
    assert learner.accounts.archived == 2 * STEPS_PER_BATCH
    learner.close()
    assert archive.events == ["close"]


def test_what_the_archive_leaves_out_or_deletes_is_accounted_for():
    class Thinned(Recorder):
        deleted = {"by age": 3}

        def write(self, iteration, *others):
            return "" if iteration % 2 else "by rule"

    learner = make_learner(archive=Thinned())
    train(learner, 4)
    assert (learner.accounts.archived, learner.accounts.thinned) == (2 * STEPS_PER_BATCH, {"by rule": 2 * STEPS_PER_BATCH})
    assert learner.accounts.deleted == {"by age": 3}


def test_progress_follows_the_steps_and_ends_at_1():
    learner = make_learner(total_steps=2 * STEPS_PER_BATCH)
    train(learner, 4)
    assert [progress for progress, _ in learner.algorithm.batches] == [0.0, 0.5, 1.0, 1.0]


def test_randomness_of_learning_depends_on_seed_and_iteration_alone():
    whole, late, other = make_learner(), make_learner(), make_learner(run_seed=4)
    train(whole, 3), train(late, 1, first=3), train(other, 1, first=3)
    numbers = [[number for _, number in learner.algorithm.batches] for learner in (whole, late, other)]
    assert len(set(numbers[0])) == 3
    assert numbers[1] == numbers[0][2:] != numbers[2]


def test_a_batch_says_how_many_updates_older_its_weights_are():
    learner = make_learner()
    for iteration, version in ((1, 0), (2, 0), (3, 1)):
        fill(learner, iteration)
        learner.take(Command(iteration, version))
        learner.learn()
    assert learner.algorithm.lags == [0, 1, 1]


def test_a_report_says_what_happened_in_the_iteration():
    reports = train(make_learner(), 3)
    last = reports[-1]
    assert (last.iteration, last.steps, last.total_steps, last.version, last.lag) == (3, 21, 70, 3, 0)
    assert last.stats == {"loss": 0.5} and last.evaluation is None
    assert [row["return"] for row in last.episodes] == [3.0]
    assert (last.num_episodes, last.mean_return, last.mean_length) == (3, 2.0, 3.0)
    for report in reports:
        phases = {name: value for name, value in report.seconds.items() if name != "iteration"}
        assert sum(phases.values()) == pytest.approx(report.seconds["iteration"])
    assert last.elapsed >= reports[0].elapsed > 0


def test_threads_are_set_before_learning():
    learner, calls = make_learner(), []
    learner._begin = lambda: calls.append(learner.algorithm.updates)
    train(learner, 2)
    assert calls == [0, 1]


def test_a_resumed_learner_goes_on_where_the_state_was_taken():
    first = make_learner(archive=Recorder())
    train(first, 2)
    state = first.state_dict()
    resumed = make_learner(archive=Recorder())
    resumed.load_state_dict(state)
    assert (resumed.iteration, resumed.version, resumed.steps, resumed.algorithm.updates) == (2, 2, 14, 2)
    assert torch.equal(resumed._weights.flat.vector, state["weights"])
    (report,) = train(resumed, 1, first=3)  # the workers count from 0 again
    assert (report.steps, report.num_episodes, report.mean_return) == (21, 3, 2.0)
    assert resumed.accounts.collected == resumed.accounts.archived == 21
    assert report.elapsed >= state["elapsed"]
    assert report.fps * (report.elapsed - state["elapsed"]) == pytest.approx(7)


def test_state_is_a_copy():
    learner = make_learner()
    train(learner, 1)
    state = learner.state_dict()
    weights, accounts = state["weights"].clone(), dict(state["accounts"])
    train(learner, 1, first=2)
    assert torch.equal(state["weights"], weights) and state["accounts"] == accounts
