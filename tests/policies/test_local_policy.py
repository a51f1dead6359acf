"""LocalPolicy: numpy in, numpy out, all randomness from the noise, and new weights are seen."""

import contextlib

import numpy as np
import pytest
import torch

from mpirl.models.conv import NatureCNN
from mpirl.models.mlp import MLP
from mpirl.policies.local import LocalPolicy
from mpirl.specs import ArraySpec, Specs
from mpirl.weights import FlatWeights

torch.set_num_threads(1)
PLAIN = Specs({"observation": ArraySpec((3,), "float32")}, ArraySpec((), "int32", num_values=4))
IMAGE = Specs({"observation": ArraySpec((36, 36), "uint8")}, ArraySpec((), "int64", num_values=4))


def bfloat16():
    return torch.autocast("cpu", torch.bfloat16)


def decide(policy, observation, noise=None):
    n = len(observation)
    return policy.act({"observation": observation}, np.zeros(n, np.uint8), np.zeros((n, 0), np.float32), noise)


def rows(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 3), np.float32)


def test_decision_has_the_contracts_shapes_and_dtypes():
    policy = LocalPolicy(MLP(PLAIN), contextlib.nullcontext, extras=["value", "parameters"])
    decision = decide(policy, rows(5), np.random.default_rng(0).random((5, 1), np.float32))
    assert decision.action.shape == (5,) and decision.action.dtype == np.int32
    assert decision.log_prob.shape == (5,) and decision.log_prob.dtype == np.float32
    assert decision.core.shape == (5, 0)
    assert decision.extras["value"].shape == (5,) and decision.extras["parameters"].shape == (5, 4)
    assert decision.extras["value"].dtype == np.float32


def test_extras_come_only_when_asked():
    assert decide(LocalPolicy(MLP(PLAIN), contextlib.nullcontext), rows(2)).extras == {}


def test_action_is_a_function_of_observation_and_noise():
    policy = LocalPolicy(MLP(PLAIN), contextlib.nullcontext)
    noise = np.random.default_rng(0).random((50, 1), np.float32)
    first, second = decide(policy, rows(50), noise), decide(policy, rows(50), noise)
    np.testing.assert_array_equal(first.action, second.action)
    assert len(set(first.action.tolist())) == 4
    np.testing.assert_allclose(first.log_prob, np.log(0.25), atol=0.1)


def test_actions_are_those_of_the_models_distribution():
    model = MLP(PLAIN)
    noise = np.random.default_rng(0).random((500, 1), np.float32)
    decision = decide(LocalPolicy(model, contextlib.nullcontext, extras=["parameters"]), rows(500), noise)
    parameters = torch.from_numpy(decision.extras["parameters"])
    action = model.distribution.sample(parameters, torch.from_numpy(noise))
    assert (decision.action != action.numpy()).mean() < 0.01  # noise on the border of two actions, which rounding moves
    expected = model.distribution.log_prob(parameters, torch.from_numpy(decision.action))
    np.testing.assert_allclose(decision.log_prob, expected, rtol=1e-5)


def test_without_noise_the_most_likely_action_is_taken():
    model = MLP(PLAIN)
    model.heads.policy.bias.data[2] = 5.0
    assert (decide(LocalPolicy(model, contextlib.nullcontext), rows(9)).action == 2).all()


def test_continuous_mode_is_the_mean():
    model = MLP(Specs(PLAIN.observation, ArraySpec((2,), "float32")))
    decision = decide(LocalPolicy(model, contextlib.nullcontext, extras=["parameters"]), rows(4))
    np.testing.assert_array_equal(decision.action, decision.extras["parameters"][:, :2])


def test_strided_views_of_a_trajectory_are_accepted():
    frames = np.random.default_rng(0).integers(0, 256, (3, 9, 36, 36), np.uint8)
    policy = LocalPolicy(NatureCNN(IMAGE, hidden=8), contextlib.nullcontext, extras=["value"])
    view, copied = decide(policy, frames[:, 2:6]), decide(policy, frames[:, 2:6].copy())
    np.testing.assert_array_equal(view.extras["value"], copied.extras["value"])


def test_weights_written_to_the_vector_are_acted_with_at_once():
    model = MLP(PLAIN)
    weights, policy = FlatWeights(model), LocalPolicy(model, contextlib.nullcontext, extras=["value"])
    weights.array[:] = 0
    assert not decide(policy, rows(3)).extras["value"].any()


@pytest.mark.parametrize("autocast", [bfloat16, contextlib.nullcontext])
def test_refresh_changes_no_decision_and_follows_the_weights(autocast):
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 36, 36), np.uint8)
    model = NatureCNN(IMAGE, hidden=8)
    weights = FlatWeights(model)
    plain, refreshed = (LocalPolicy(model, autocast, extras=["value", "parameters"]) for _ in range(2))
    for _ in range(2):
        refreshed.refresh()
        for name, array in decide(plain, frames).extras.items():
            np.testing.assert_allclose(decide(refreshed, frames).extras[name], array, rtol=1e-5, atol=1e-6)
        weights.array[:] *= 1.5


def test_refresh_without_support_is_nothing(monkeypatch):
    monkeypatch.setattr("mpirl.models.conv.can_pack", lambda weight: False)
    for policy in (LocalPolicy(NatureCNN(IMAGE, hidden=8), contextlib.nullcontext), LocalPolicy(MLP(PLAIN), bfloat16)):
        policy.refresh()
        assert policy._acting is policy.model
