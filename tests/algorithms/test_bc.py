"""Behavioural cloning: it copies what was done, from the episodes it should."""

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

from mpirl.algorithms.base import Batch
from mpirl.algorithms.bc import BC, top_of_tasks
from mpirl.errors import UserError
from mpirl.models.mlp import MLP
from mpirl.models.stacking import observer
from mpirl.specs import ArraySpec, Specs
from mpirl.testing import check_algorithm

torch.set_num_threads(1)
DISCRETE = Specs({"observation": ArraySpec((3,), "float32")}, ArraySpec((), "int64", num_values=3))
CONTINUOUS = Specs({"observation": ArraySpec((3,), "float32")}, ArraySpec((2,), "float32"))
N, T = 4, 20
FIRST, MID, LAST = 0, 1, 2


def network(specs=DISCRETE, seed=0):
    torch.manual_seed(seed)
    return MLP(specs, hidden=(16,))


def clone_batch(action, seed=0, progress=0.0, chosen=None, specs=DISCRETE):
    """N x T steps whose actions are action(observation [.., 3]); lane 0 has a seam at 5."""
    draw = torch.Generator().manual_seed(seed)
    observation = torch.randn(N, T + 1, 3, generator=draw)
    step_type = torch.full((N, T + 1), MID, dtype=torch.uint8)
    step_type[0, 5], step_type[0, 6] = LAST, FIRST
    fields = {"step_type": step_type, "action": action(observation)[:, :-1].contiguous(), "reward": torch.zeros(N, T)}
    fields |= {"discount": torch.ones(N, T)}
    observe = observer({"observation": observation}, step_type, 1)
    return Batch(fields, progress, np.random.default_rng(seed), observe, contextlib.nullcontext, chosen)


@pytest.mark.parametrize("specs", [DISCRETE, CONTINUOUS])
def test_honours_the_contract(specs):
    check_algorithm(lambda model, specs: BC(model, specs, minibatch_size=16), network(specs), specs)


def test_the_gradient_is_that_of_the_likelihood():
    model, batch = network(), clone_batch(lambda o: o.argmax(-1))
    algorithm = BC(model, DISCRETE)
    steps = algorithm._steps(batch)
    loss = algorithm.loss(batch, steps)[0]
    observation = batch.observe(steps["position"])
    logits = model(observation, None, torch.zeros(len(steps["action"]), 0))[0].parameters
    naive = nn.functional.cross_entropy(logits, steps["action"])
    torch.testing.assert_close(loss, naive)
    assert len(steps["position"]) == N * T - 1, "the seam is no step"


def test_learns_a_rule_from_its_examples():
    model = network()
    algorithm = BC(model, DISCRETE, learning_rate=1e-2, minibatch_size=16)
    before = algorithm.validate(clone_batch(lambda o: o.argmax(-1), seed=999))
    for seed in range(60):
        statistics = algorithm.learn(clone_batch(lambda o: o.argmax(-1), seed=seed))
    after = algorithm.validate(clone_batch(lambda o: o.argmax(-1), seed=999))
    assert after["accuracy"] > 0.9 > before["accuracy"]
    assert after["negative_log_likelihood"] < before["negative_log_likelihood"]
    assert statistics["learned"] == N * T - 1 and statistics["n_updates"] == 60


def test_copies_a_mixture_as_it_is():
    draw = torch.Generator().manual_seed(1)
    model = network()
    algorithm = BC(model, DISCRETE, learning_rate=5e-3, minibatch_size=40)
    often = lambda o: (torch.rand(o.shape[:-1], generator=draw) < 0.7).long() * 2  # 70 % action 2, 30 % action 0, never 1
    for seed in range(120):
        algorithm.learn(clone_batch(often, seed=seed, progress=seed / 120))
    probability = model({"observation": torch.randn(200, 3)}, None, torch.zeros(200, 0))[0].parameters.softmax(-1).mean(0)
    torch.testing.assert_close(probability, torch.tensor([0.3, 0.0, 0.7]), atol=0.06, rtol=0)


def test_steps_that_are_not_chosen_have_no_influence():
    chosen = torch.zeros(N, T, dtype=torch.bool)
    chosen[1, 3:9] = True
    noisy = lambda o: torch.where(chosen_at(o), o.argmax(-1), 0)
    chosen_at = lambda o: nn.functional.pad(chosen, (0, 1))
    models = [network(), network()]
    for model, action in zip(models, (noisy, lambda o: o.argmax(-1))):
        statistics = BC(model, DISCRETE).learn(clone_batch(action, chosen=chosen))
        assert statistics["learned"] == 6
    assert all(torch.equal(*pair) for pair in zip(models[0].parameters(), models[1].parameters()))


def test_validation_changes_nothing_and_is_empty_without_steps():
    model = network()
    algorithm, before = BC(model, DISCRETE), [parameter.clone() for parameter in model.parameters()]
    assert algorithm.validate(clone_batch(lambda o: o.argmax(-1)))
    assert algorithm.validate(clone_batch(lambda o: o.argmax(-1), chosen=torch.zeros(N, T, dtype=torch.bool))) == {}
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before)) and algorithm.n_updates == 0


def test_all_are_cloned_unless_a_share_is_asked_for():
    episodes = {"return": np.arange(20.0), "task": np.full(20, "")}
    assert BC(network(), DISCRETE).choose(episodes) is None
    algorithm = BC(network(), DISCRETE, top=0.25)
    assert np.flatnonzero(algorithm.choose(episodes)).tolist() == [15, 16, 17, 18, 19]
    assert "below the top 25 % of returns" in algorithm.left_out


def test_the_best_of_every_task_are_chosen_ties_included():
    score = np.array([1.0, 2, 3, 4, 10, 20, 30, 30])
    task = np.array(["easy"] * 4 + ["hard"] * 4)
    assert np.flatnonzero(top_of_tasks(score, task, 0.25)).tolist() == [3, 6, 7]
    assert top_of_tasks(np.zeros(3), np.full(3, ""), 0.1).all()
    assert top_of_tasks(np.zeros(0), np.zeros(0, str), 0.1).tolist() == []


@pytest.mark.parametrize("settings", [{"top": 0}, {"top": 1.5}, {"learning_rate": 0}, {"minibatch_size": 1}, {"epochs": 0}])
def test_wrong_settings_are_named_with_their_value(settings):
    ((key, value),) = settings.items()
    with pytest.raises(UserError, match=f"algorithm.{key}={value!r}"):
        BC(network(), DISCRETE, **settings)
