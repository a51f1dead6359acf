"""Roles: every rank builds its parts from the same config, and a mistake that one rank meets is told by all."""

import copy

import numpy as np
import pytest
import torch

from mpirl.assembly import make_model
from mpirl.emulators import lanes as lanes_module
from mpirl.emulators.catch import Catch
from mpirl.errors import AgreedError
from mpirl.role import plan_world, take_role
from mpirl.specs import ArraySpec, Specs
from mpirl.transport.threads import run_threads
from mpirl.weights import FlatWeights

CONFIG = {
    "program": "train",
    "init_from": None,
    "seed": 1,
    "total_steps": 1000,
    "steps": 4,
    "run_dir": "no_run",
    "device": "cpu",
    "precision": "fp32",
    "placement": {"lanes_per_worker": 2},
    "evaluation": {"episodes": 5},
    "checkpoint": {"keep": 3},
    "schedule": {"lag": 0},
    "compile": False,
    "wire": {"gather": "direct", "weights": "fp32"},
    "emulator": {"_target_": "mpirl.emulators.catch.Catch", "rows": 4, "columns": 3},
    "model": {"_target_": "mpirl.models.mlp.MLP", "hidden": [8], "frame_stack": 2},
    "algorithm": {"_target_": "mpirl.algorithms.ppo.PPO", "minibatch_size": 4},
}


def config(**changes):
    return {**copy.deepcopy(CONFIG), **changes}


def roles(settings, size=3, state=None):
    """Every rank's role, or the message of the mistake that it raised."""

    def rank(group):
        try:
            return take_role(settings, group, plan_world(settings, group), state if group.rank == 0 else None)
        except AgreedError as error:
            return str(error)

    return run_threads(size, rank, deadline=30)


def test_rank_0_learns_and_the_others_work():
    learner, *workers = roles(config())
    assert learner.learner and learner.learner.batch.num_lanes == 4 and not learner.worker
    for number, worker in enumerate(workers):
        assert worker.worker and worker.evaluator and not worker.learner
        assert worker.trajectory.num_lanes == 2 and worker.worker.lanes.numbers.tolist() == [2 * number, 2 * number + 1]
    assert learner.layout == workers[0].layout and learner.layout.context == 1
    assert learner.episodes_per_lane == 2, "at least 5 episodes in 4 lanes"


def test_all_ranks_start_with_the_same_weights_of_the_runs_seed():
    first, other = roles(config()), roles(config(seed=2))
    for role in first[1:]:
        np.testing.assert_array_equal(role.weights, first[0].weights)
    assert (first[0].weights != other[0].weights).any()


def test_the_first_weights_do_not_depend_on_the_number_of_threads():
    specs = Specs({"observation": ArraySpec((84, 84), "uint8", low=0.0, high=255.0)}, ArraySpec((), "int64", num_values=6))
    settings = config(model={"_target_": "mpirl.models.conv.NatureCNN"})
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            made.append(FlatWeights(make_model(settings, specs)[0]).vector)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


def test_ranks_without_lanes_take_part():
    world = roles(config(placement={"lanes": [3, 0]}))
    assert [role.trajectory.num_lanes for role in world[1:]] == [3, 0] and world[0].lanes == (0, 3, 0)


def test_small_models_get_one_thread_per_rank():
    assert roles(config())[0].plan.threads == (1, 1, 1)


def test_resumed_lanes_go_on_after_the_last_episodes():
    learner, *_ = roles(config())
    learner.learner.episodes.last_id[:] = 8, 1, -1, 7
    _, first, second = roles(config(), state=learner.learner.state_dict())
    assert first.worker.lanes.index.tolist() == [3, 1] and second.worker.lanes.index.tolist() == [0, 2]
    assert second.evaluator.lanes.index.tolist() == [0, 0]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"device": "gpu"}, "device='gpu': write auto, cpu, cuda or cuda:N"),
        ({"precision": "fp8"}, "precision='fp8': choose auto, fp32 or bf16"),
        ({"placement": {"lanes": [1]}}, "names 1 workers, this world has 2"),
        ({"model": {"_target_": "mpirl.models.mlp.MLP", "hidden": [0]}}, "model.hidden"),
        ({"emulator": {"_target_": "mpirl.emulators.catch.Catch", "rows": 0}}, "rows"),
        ({"algorithm": {"_target_": "mpirl.algorithms.ppo.PPO", "epochs": 0}}, "epochs"),
    ],
)
def test_mistakes_are_raised_on_all_ranks_alike(changes, message):
    messages = roles(config(**changes))
    assert len(set(messages)) == 1 and message in messages[0]


def test_workers_with_different_emulators_are_refused(monkeypatch):
    sizes = iter([4, 5])
    settings = lambda node, where, provided: (Catch, {"rows": next(sizes), "columns": 3})
    monkeypatch.setattr(lanes_module, "settings_of", settings)
    messages = roles(config())
    assert len(set(messages)) == 1 and "the emulators differ: rank 1 on" in messages[0]
