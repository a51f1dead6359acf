"""LeanPolicy: decides as LocalPolicy does, but for rounding, for every MLP, and is chosen for no other model."""

import contextlib
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from mpirl.assembly import draw_noise
from mpirl.models import lean
from mpirl.models.base import Output
from mpirl.models.conv import NatureCNN
from mpirl.models.distributions import Categorical
from mpirl.models.mlp import MLP
from mpirl.models.q import QNetwork
from mpirl.policies.lean import LeanPolicy
from mpirl.policies.local import LocalPolicy, local_policy
from mpirl.specs import ArraySpec, Specs
from mpirl.weights import FlatWeights

torch.set_num_threads(1)
FIELDS = {
    "vector": {"observation": ArraySpec((3,), "float32")},
    "discrete": {"observation": ArraySpec((), "int64", num_values=5)},
    "several": {
        "observation.card": ArraySpec((), "int32", num_values=4),
        "observation.board": ArraySpec((2, 3), "uint8"),
        "observation.flag": ArraySpec((1,), "bool"),
        "observation.speed": ArraySpec((), "float64"),
    },
}
ACTIONS = {
    "four": ArraySpec((), "int32", num_values=4),
    "one": ArraySpec((), "int64", num_values=1),
    "matrix": ArraySpec((2, 3), "float32"),
    "double": ArraySpec((2,), "float64"),
}
MODELS = [{}, {"shared": True}, {"activation": "relu"}, {"hidden": []}, {"hidden": [16, 300, 8], "shared": True}]


def observations(specs, n, frame_stack, rng):
    stack = (frame_stack,) if frame_stack > 1 else ()
    values = {}
    for name, spec in specs.observation.items():
        shape, high = (n, *stack, *spec.shape), spec.num_values or 2
        drawn = rng.integers(0, high, shape) if spec.is_integer else rng.standard_normal(shape)
        values[name] = (drawn > 0 if spec.dtype == "bool" else drawn).astype(spec.dtype)
    return values


def trained(model, scale=1.5, seed=0):
    """Weights as training could leave them: biases and log standard deviations that differ, peaked policies."""
    weights = FlatWeights(model)
    weights.array[:] += np.random.default_rng(seed).normal(0, scale / 4, weights.size)
    return weights


def both(model, n=33, greedy=False, seed=0):
    """The decisions of LeanPolicy and LocalPolicy."""
    rng = np.random.default_rng(seed)
    seen = observations(model.specs, n, model.frame_stack, rng)
    noise = None if greedy else draw_noise(model.distribution, rng, n)
    extras = ("value", "parameters")
    policies = LeanPolicy(model, extras), LocalPolicy(model, contextlib.nullcontext, extras)
    return [policy.act(seen, np.zeros(n, np.uint8), np.zeros((n, 0), np.float32), noise) for policy in policies]


def make(fields="vector", action="four", **settings):
    specs = Specs(FIELDS[fields], ACTIONS[action])
    model = MLP(specs, **settings)
    model.specs = specs
    return model


def check_same(found, expected):
    for name in ("action", "log_prob", "core"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype and one.shape == other.shape, name
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5, err_msg=name)
    for name, array in expected.extras.items():
        assert found.extras[name].dtype == array.dtype
        np.testing.assert_allclose(found.extras[name], array, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("fields, action", list(itertools.product(FIELDS, ACTIONS)))
def test_decisions_are_torchs(fields, action, greedy):
    for settings, frame_stack in itertools.product(MODELS, (1, 3)):
        model = make(fields, action, frame_stack=frame_stack, **settings)
        trained(model)
        check_same(*both(model, greedy=greedy))


def test_samples_follow_the_noise_over_all_actions():
    model = make()
    trained(model, scale=0.4)
    found, expected = both(model, n=5000)
    assert len(set(found.action.tolist())) == 4
    assert (found.action == expected.action).mean() > 0.999  # but for ties of rounding


def test_impossible_and_certain_actions_give_finite_decisions():
    choose = Categorical(3).lean()
    logits = np.array([[0, -np.inf, -np.inf], [-np.inf, 500, -500], [-np.inf, -np.inf, 80]], np.float32)
    almost_one = np.full((3, 1), np.nextafter(np.float32(1), np.float32(0)))
    for noise in (None, np.zeros((3, 1), np.float32), almost_one):
        action, log_prob = choose(logits, noise)
        assert action.tolist() == [0, 1, 2]
        np.testing.assert_array_equal(log_prob, 0)


def test_weights_written_to_the_vector_are_acted_with_at_once():
    model = make(action="matrix")
    weights = FlatWeights(model)
    policy = LeanPolicy(model, ["value", "parameters"])
    weights.array[:] = 0
    decision = policy.act({"observation": np.ones((2, 3), np.float32)}, np.zeros(2, np.uint8), np.zeros((2, 0)), None)
    assert not decision.extras["value"].any() and not decision.extras["parameters"].any()


def test_refresh_finds_weights_that_moved():
    model = make()
    policy = LeanPolicy(model, ["value"])
    FlatWeights(model).array[:] = 0
    policy.refresh()
    decision = policy.act({"observation": np.ones((2, 3), np.float32)}, np.zeros(2, np.uint8), np.zeros((2, 0)), None)
    assert not decision.extras["value"].any()


def test_observations_are_left_as_they_are():
    model = make(hidden=[])
    frames = np.ones((2, 3), np.float32)
    LeanPolicy(model).act({"observation": frames}, np.zeros(2, np.uint8), np.zeros((2, 0)), np.zeros((2, 1), np.float32))
    assert (frames == 1).all()


def test_many_rows_are_taken_in_blocks_with_the_same_results(monkeypatch):
    model = make("several", "matrix", hidden=[64, 64])
    trained(model)
    whole, expected = both(model, n=100)
    monkeypatch.setattr(lean, "MOST_WORK", 64 * 64 * 7)
    blocks, _ = both(model, n=100)
    check_same(blocks, expected)
    np.testing.assert_allclose(blocks.log_prob, whole.log_prob, rtol=1e-6, atol=1e-6)


class Negated(MLP):
    def forward(self, observation, step_type, core):
        output, core = super().forward(observation, step_type, core)
        return Output(-output.parameters, output.value), core


class Normalised(MLP):
    def __init__(self, specs):
        super().__init__(specs)
        self.policy_trunk = nn.Sequential(nn.LayerNorm(3), *self.policy_trunk)


def bfloat16():
    return torch.autocast("cpu", torch.bfloat16)


def test_small_mlp_gets_the_lean_policy_and_everything_else_torchs():
    specs, image = Specs(FIELDS["vector"], ACTIONS["four"]), {"observation": ArraySpec((36, 36), "uint8")}
    assert type(local_policy(MLP(specs), contextlib.nullcontext)) is LeanPolicy
    others = [Negated(specs), Normalised(specs), QNetwork(MLP(specs)), MLP(specs, [400, 400])]
    others.append(NatureCNN(Specs(image, ACTIONS["four"]), hidden=8))
    for model in others:
        assert type(local_policy(model, contextlib.nullcontext)) is LocalPolicy
    assert type(local_policy(MLP(specs), bfloat16)) is LocalPolicy


def test_another_distribution_is_left_to_torch():
    class Careful(Categorical):
        pass

    model = make()
    model.distribution = Careful(4)
    assert model.lean() is None
