"""policy=central: rank 0 acts for all workers, and the trajectories are those that the workers would have made themselves."""

import copy
import json
import time

import numpy as np
import pytest
import torch
from running import run

from mpirl.algorithms.base import Algorithm
from mpirl.archive.reader import read_archive
from mpirl.config import compose_job
from mpirl.errors import UserError
from mpirl.evaluation import evaluate
from mpirl.models.base import Model, Output
from mpirl.models.mlp import MLP
from mpirl.policies.central import Central
from mpirl.policies.local import LocalPolicy
from mpirl.role import plan_world, take_role
from mpirl.schedule import Command
from mpirl.specs import ArraySpec
from mpirl.transport.threads import run_threads

LOCAL = {"_target_": "mpirl.policies.local.LocalPolicy"}
CONFIG = {
    "program": "train",
    "init_from": None,
    "seed": 1,
    "total_steps": 1000,
    "steps": 6,
    "run_dir": "no_run",
    "device": "cpu",
    "precision": "fp32",
    "schedule": {"lag": 0},
    "compile": False,
    "wire": {"gather": "direct", "weights": "fp32"},
    "placement": {},
    "evaluation": {"episodes": 5},
    "checkpoint": {"keep": 3},
    "emulator": {"_target_": "mpirl.emulators.catch.Catch", "rows": 4, "columns": 3},
    "model": {"_target_": "mpirl.models.mlp.MLP", "hidden": [8], "frame_stack": 3},
    "algorithm": {"_target_": "mpirl.algorithms.ppo.PPO", "minibatch_size": 4},
}


def central(groups=2):
    return {"_target_": "mpirl.policies.central.Central", "groups": groups}


class Remembering(Model):
    """Its recurrent state sums up what it saw in the episode, and its logits depend on it."""

    core_size = 2

    def __init__(self, specs):
        super().__init__()
        self.inner = MLP(specs, hidden=[4])
        self.distribution = self.inner.distribution
        self.mix = torch.nn.Linear(2, self.distribution.num_parameters)

    def forward(self, observation, step_type, core):
        output, _ = self.inner(observation, step_type, core)
        core = core * (step_type != 0).unsqueeze(1) + torch.stack([output.value, torch.ones_like(output.value)], 1)
        return Output(output.parameters + self.mix(core), output.value), core


class Watching(Algorithm):
    """Learns nothing, from any model."""

    @staticmethod
    def extras(specs):
        return {"value": ArraySpec((), "float32")}

    def __init__(self, model, specs):
        pass

    def learn(self, batch):
        return {"learned": 0}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Slow(MLP):
    """Takes 10 ms per lane to decide."""

    def forward(self, observation, step_type, core):
        time.sleep(0.01 * len(step_type))
        return super().forward(observation, step_type, core)


class Counted(LocalPolicy):
    """A policy of a user's own."""

    decisions = 0

    def decide(self, *arguments):
        Counted.decisions += 1
        return super().decide(*arguments)


def collected(policy, lanes=(3, 1), iterations=4, evaluate_at=0, **changes):
    """Rank 0's batches of an untrained world: copies, the statistics of an evaluation, and seconds of collecting."""
    config = {**copy.deepcopy(CONFIG), "policy": policy, **changes}
    config["placement"] = {"lanes": list(lanes)}

    def rank(group):
        role = take_role(config, group, plan_world(config, group))
        batches, evaluation, seconds = [], None, 0.0
        for iteration in range(1, iterations + 1):
            command = Command(iteration, version=iteration - 1)
            group.broadcast(role.published)
            start = time.perf_counter()
            if role.worker:
                role.worker.collect(command)
            group.gather(role.trajectory, role.staging, role.lanes)
            seconds += time.perf_counter() - start
            if role.staging:
                batches.append({name: array.copy() for name, array in role.staging.items()})
            if iteration == evaluate_at:
                evaluation = evaluate(role, group, command)
        role.close()
        return batches, evaluation, seconds

    return run_threads(len(lanes) + 1, rank, deadline=30)[0]


def check_equal(batches, expected):
    """What the policy computes is equal up to rounding: with continuous actions, so is every real number that follows from them."""
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected):
        is_continuous = other["action"].dtype.kind == "f"
        for name in other:
            is_rounded = name in ("log_prob", "value", "core") or (is_continuous and other[name].dtype.kind == "f")
            np.testing.assert_allclose(batch[name], other[name], rtol=0, atol=1e-5 if is_rounded else 0, err_msg=name)


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("lanes", [(1,), (4,), (3, 1), (0, 2), (2, 0, 5)], ids=str)
def test_trajectories_are_those_of_the_local_policy(lanes, groups):
    check_equal(collected(central(groups), lanes)[0], collected(LOCAL, lanes)[0])


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_trajectories_of_gymnasium_are_those_of_the_local_policy(name):
    emulator = {"_target_": "mpirl.emulators.gymnasium.GymnasiumEmulator", "id": name}
    check_equal(collected(central(), emulator=emulator)[0], collected(LOCAL, emulator=emulator)[0])


def test_rank_0_keeps_the_recurrent_state_over_iterations_and_evaluations():
    parts = {"model": {"_target_": "test_central.Remembering"}, "algorithm": {"_target_": "test_central.Watching"}}
    batches, evaluation, _ = collected(central(), **parts, evaluate_at=2)
    expected, other, _ = collected(LOCAL, **parts, evaluate_at=2)
    check_equal(batches, expected)
    assert evaluation == pytest.approx(other) and np.abs(batches[-1]["core"]).sum() > 1


@pytest.mark.parametrize("lanes", [(3, 1), (0, 2)], ids=str)
def test_evaluation_plays_the_same_episodes_and_leaves_the_training_lanes_alone(lanes):
    batches, evaluation, _ = collected(central(), lanes, evaluate_at=2)
    expected, other, _ = collected(LOCAL, lanes, evaluate_at=2)
    check_equal(batches, expected)
    assert evaluation == pytest.approx(other) and evaluation["episodes"] >= 5


def test_emulation_and_inference_overlap_with_two_groups():
    """2 lanes, each takes 10 ms to emulate and 10 ms to decide for: 40 ms a step by turns, 20 ms when they overlap.

    Other work on the machine delays some sleeps, so the quickest of three counts.
    """
    emulator = {**CONFIG["emulator"], "latency": 0.01}
    model = {"_target_": "test_central.Slow", "hidden": [8]}
    measure = lambda groups: collected(central(groups), (2,), emulator=emulator, model=model)[2]
    one, two = (min(measure(groups) for _ in range(3)) for groups in (1, 2))
    assert two < 0.75 * one


def test_lanes_that_are_over_go_to_different_slots_on_different_workers():
    assert Central(2).split((0, 1, 1, 1, 1)) == [[0, 1, 0, 1, 0], [0, 0, 1, 0, 1]]
    for groups in (1, 2, 3):
        for lanes in ((0, 5, 4, 0, 1), (0, 7)):
            assert [sum(counts) for counts in zip(*Central(groups).split(lanes))] == list(lanes)


def test_no_weights_are_broadcast():
    config = {**copy.deepcopy(CONFIG), "policy": central(), "placement": {"lanes": [2]}}
    learner, worker = run_threads(2, lambda group: take_role(config, group, plan_world(config, group)), deadline=30)
    assert learner.published.nbytes == worker.published.nbytes == 0 < learner.weights.nbytes


def test_a_whole_run_learns_the_same_as_the_local_policy_does(tmp_path):
    settings = ["emulator=catch", "total_steps=1500", "evaluation.every=3", "device=cpu", "precision=fp32"]
    for policy in ("local", "central"):
        run(*settings, f"policy={policy}", f"run_dir={tmp_path}/{policy}", ranks=3)
    batches = [[batch for *_, batch in read_archive(tmp_path / policy / "archive")] for policy in ("local", "central")]
    for local, batch in zip(*batches):
        np.testing.assert_array_equal(local["action"], batch["action"])
        np.testing.assert_allclose(local["log_prob"], batch["log_prob"], atol=1e-4)
    found = [json.loads((tmp_path / policy / "status.json").read_text()) for policy in ("local", "central")]
    assert found[0]["evaluation"] == pytest.approx(found[1]["evaluation"])
    assert found[0]["steps"] == found[1]["steps"] and found[1]["weights_bytes"] > 0


def test_a_resumed_run_acts_centrally_and_loses_no_step(tmp_path):
    settings = ["emulator=catch", "policy=central", "steps=32", "checkpoint.every=2", f"run_dir={tmp_path}/run"]
    run(*settings, "total_steps=500", ranks=3)
    run("resume=true", f"run_dir={tmp_path}/run", "total_steps=1000", ranks=3)
    accounts = json.loads((tmp_path / "run/status.json").read_text())["accounts"]
    assert accounts["collected"] == accounts["gathered"] == accounts["learned"] == accounts["archived"] >= 1000
    run("program=evaluate", f"run_dir={tmp_path}/run", ranks=3)
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["episodes"] >= 10


def test_the_same_seed_gives_the_same_run(tmp_path):
    batches = [collected(central(), (3, 2))[0] for _ in range(2)]
    for first, again in zip(*batches):
        for name in first:
            np.testing.assert_array_equal(first[name], again[name], name)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["policy=central", "schedule.lag=1"], "rank 0 cannot act for the workers and learn at once"),
        (["policy=central", "policy.groups=0"], "policy.groups=0: write 1 or more"),
        (["policy=central", "policy.groups=two"], "policy.groups='two'"),
        (["policy=central", "+policy.grups=2"], "did you mean 'groups'"),
    ],
)
def test_settings_that_no_run_can_have_are_refused(overrides, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run("emulator=catch", *overrides, "total_steps=100", f"run_dir={tmp_path}/run")


def test_offline_training_evaluates_on_the_workers_whatever_the_policy(tmp_path):
    run("emulator=catch", "total_steps=600", f"run_dir={tmp_path}/run")
    settings = ["algorithm=bc", "policy=central", "offline.epochs=1"]
    run("program=offline", f"archive={tmp_path}/run", *settings, f"run_dir={tmp_path}/bc")
    assert json.loads((tmp_path / "bc/status.json").read_text())["evaluation"]["episodes"] >= 10


def test_a_policy_of_ones_own_acts_on_the_workers():
    before = Counted.decisions
    batches, *_ = collected({"_target_": "test_central.Counted"}, (2,), iterations=2)
    assert Counted.decisions == before + 2 * (CONFIG["steps"] + 1) and len(batches) == 2


def test_the_choice_of_policy_is_in_the_config():
    assert compose_job(["emulator=catch"]).config["policy"] == {"_target_": "mpirl.policies.local.local_policy"}
    assert compose_job(["emulator=catch", "policy=central"]).config["policy"] == central()
