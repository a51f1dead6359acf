"""schedule.lag=1: collecting beside learning. What overlaps, how old the weights are, and that nothing is lost."""

import json
import time

import numpy as np
import pytest
import torch
from learning import STEPS_PER_BATCH, Recorder, fill, make_learner
from running import run

from mpirl.algorithms.base import Algorithm
from mpirl.archive.reader import read_archive
from mpirl.checkpoint import load
from mpirl.errors import Interrupted, UserError
from mpirl.schedule import Command
from mpirl.transport.threads import run_threads


class Slow(Algorithm):
    """Takes `seconds` for an update that adds 1 to every weight, and does not compute meanwhile."""

    def __init__(self, model, specs, seconds=0.0, fails_at=0):
        self.model, self.seconds, self.fails_at, self.updates = model, seconds, fails_at, 0

    def learn(self, batch):
        self.updates += 1
        if self.updates == self.fails_at:
            raise FloatingPointError("diverged")
        time.sleep(self.seconds)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(1.0)
        return {"learned": int(batch.is_step.sum()), "version": float(batch.fields["version"].max())}

    def state_dict(self):
        return {"updates": self.updates}

    def load_state_dict(self, state):
        self.updates = state["updates"]


def slow(tmp_path, *settings, lag=1, ranks=2):
    """A run of Catch with `Slow` as its algorithm, 8 iterations of 32 steps or more; its status."""
    (tmp_path / "configs/algorithm").mkdir(parents=True)
    (tmp_path / "configs/algorithm/slow.yaml").write_text("_target_: test_overlap.Slow\nseconds: 0.0\nfails_at: 0\n")
    own = [f"hydra.searchpath=['file://{tmp_path}/configs']", "emulator=catch", "algorithm=slow", "steps=16"]
    own += ["placement.lanes_per_worker=2", "total_steps=256", f"run_dir={tmp_path}/run", f"schedule.lag={lag}"]
    run(*own, *settings, ranks=ranks)
    return json.loads((tmp_path / "run/status.json").read_text())


def versions(tmp_path):
    """The versions of the weights that collected each iteration of the archive."""
    return [int(batch["version"].max()) for _, _, batch in read_archive(tmp_path / "run/archive")]


def test_weights_are_one_update_old_from_the_second_batch_on(tmp_path):
    slow(tmp_path)
    collected_with = versions(tmp_path)
    assert collected_with == [0, *range(len(collected_with) - 1)] and len(collected_with) > 5


def test_without_lag_every_batch_is_collected_with_the_newest_weights(tmp_path):
    slow(tmp_path, lag=0)
    collected_with = versions(tmp_path)
    assert collected_with == list(range(len(collected_with))) and len(collected_with) > 5


def test_the_last_batch_is_learned_from_too(tmp_path):
    status = slow(tmp_path)
    accounts = status["accounts"]
    assert accounts["collected"] == accounts["gathered"] == accounts["learned"] == accounts["archived"] >= 256
    assert load(tmp_path / "run/checkpoints")[1]["algorithm"]["updates"] == status["iteration"] == len(versions(tmp_path))
    assert status["version"] == status["iteration"] and status["lag"] == 1


@pytest.mark.parametrize("lag", [0, 1])
def test_collecting_and_learning_take_their_sum_or_the_longer_one(tmp_path, lag):
    """Emulators sleep 16 x 20 ms, less at the ends of episodes, the learner 320 ms: about 0.62 s an iteration, or half of it."""
    status = slow(tmp_path, "emulator.latency=0.01", "algorithm.seconds=0.32", "archive.enabled=false", lag=lag)
    iteration = status["medians"]["iteration"]
    assert (0.58 < iteration < 1.2) if lag == 0 else (0.315 < iteration < 0.57), status["medians"]


def test_results_are_a_function_of_the_seed(tmp_path):
    settings = ["emulator=catch", "total_steps=1500", "steps=16", "schedule.lag=1"]
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        run(*settings, f"seed={seed}", f"run_dir={tmp_path}/{name}", ranks=3)
    one, two, other = (load(tmp_path / name / "checkpoints")[1] for name in ("one", "two", "other"))
    assert torch.equal(one["weights"], two["weights"]) and not torch.equal(one["weights"], other["weights"])


def test_a_resumed_run_collects_again_what_was_not_learned_from(tmp_path):
    settings = ["emulator=catch", "steps=16", "schedule.lag=1", "checkpoint.every=4", f"run_dir={tmp_path}/run"]
    run(*settings, "total_steps=1000", ranks=2)
    for path in sorted((tmp_path / "run/checkpoints").glob("0*.pt"))[1:]:
        path.unlink()
    path, state = load(tmp_path / "run/checkpoints")
    assert state["iteration"] % 4 == 3, "saved while the fourth batch was collected"
    assert state["accounts"]["gathered"] == state["accounts"]["learned"] == state["steps"]
    run(*settings, "total_steps=1000", "resume=true", ranks=2)
    iterations = [iteration for iteration, _, _ in read_archive(tmp_path / "run/archive")]
    accounts = json.loads((tmp_path / "run/status.json").read_text())["accounts"]
    assert iterations == list(range(1, len(iterations) + 1))
    assert accounts["collected"] == accounts["learned"] == accounts["archived"]


def test_an_update_that_fails_ends_the_run_at_once(tmp_path):
    start = time.monotonic()
    with pytest.raises(FloatingPointError, match="diverged"):
        slow(tmp_path, "algorithm.fails_at=3", "emulator.latency=0.01")
    assert time.monotonic() - start < 20
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "failed"
    assert len(versions(tmp_path)) == 3, "all that was taken is in the archive"


@pytest.mark.parametrize("lag", [-1, 2, 0.5])
def test_other_lags_are_refused(tmp_path, lag):
    with pytest.raises((UserError, ValueError), match="lag"):
        slow(tmp_path, lag=lag)


def test_two_batches_take_turns():
    learner = make_learner(archive=Recorder(), num_batches=2)
    for iteration in (1, 2, 3):
        assert learner.staging is not learner.batch
        fill(learner, iteration)
        learner.learn()
        assert learner.behind == 0
        learner.take(Command(iteration, learner.version))
        assert learner.behind == 1 and learner.version == iteration - 1
    assert [rewards for _, _, rewards, _ in learner.archive.written] == [1.0, 2.0, 3.0]
    assert learner.learn() and not learner.learn() and learner.version == 3


def test_a_state_leaves_out_the_batch_that_is_not_learned_from():
    learner = make_learner(num_batches=2)
    fill(learner, 1)
    learner.take(Command(1, 0))
    learner.learn()
    settled = learner.state_dict()
    fill(learner, 2)
    learner.take(Command(2, 0))
    state = learner.state_dict()
    names = ("iteration", "steps", "version", "accounts", "episodes", "mean_return")
    assert {name: state[name] for name in names} == {name: settled[name] for name in names}
    assert (state["steps"], learner.steps) == (STEPS_PER_BATCH, 2 * STEPS_PER_BATCH)


def test_a_failure_inside_ends_the_gather_beside():
    """Rank 1 comes to the gather too late; rank 0's thread must not wait for it."""
    seconds = []

    def rank(group):
        start = time.monotonic()
        if group.rank:
            time.sleep(2)
            return
        try:
            with group.gathering({}, {"x": np.zeros((1, 2))}, [0, 1], beside=True):
                raise ZeroDivisionError
        finally:
            seconds.append(time.monotonic() - start)
            with pytest.raises(Interrupted):
                group.gather({}, {"x": np.zeros((1, 2))}, [0, 1])

    with pytest.raises(ZeroDivisionError):
        run_threads(2, rank, deadline=30)
    assert seconds[0] < 1
