"""QNetwork: the wrapped model's outputs are action values, and epsilon travels with the weights."""

import contextlib

import numpy as np
import pytest
import torch

from mpirl.errors import UserError
from mpirl.models.conv import NatureCNN
from mpirl.models.mlp import MLP
from mpirl.models.q import QNetwork, q_network
from mpirl.policies.local import LocalPolicy
from mpirl.specs import ArraySpec, Specs
from mpirl.testing import check_model
from mpirl.weights import FlatWeights

torch.set_num_threads(1)
SPECS = Specs({"observation": ArraySpec((3,), "float32")}, ArraySpec((), "int32", num_values=4))
IMAGE = Specs({"observation": ArraySpec((36, 36), "uint8")}, ArraySpec((), "int64", num_values=4))


def values(model, observation):
    output, _ = model({"observation": observation}, torch.zeros(len(observation)), torch.zeros(len(observation), 0))
    return model.distribution.values(output.parameters), output.value


@pytest.mark.parametrize("dueling", [False, True])
def test_q_network_honours_the_contract_of_models(dueling):
    check_model(QNetwork(MLP(SPECS), dueling), SPECS)
    check_model(QNetwork(NatureCNN(IMAGE, hidden=8), dueling), IMAGE)


def test_dueling_values_are_the_value_plus_centred_advantages():
    network, observation = MLP(SPECS), torch.randn(5, 3)
    output, _ = network({"observation": observation}, None, torch.zeros(5, 0))
    plain, largest = values(QNetwork(network), observation)
    assert torch.equal(plain, output.parameters) and torch.equal(largest, plain.max(1).values)
    dueling, _ = values(QNetwork(network, dueling=True), observation)
    expected = output.value[:, None] + output.parameters - output.parameters.mean(1, keepdim=True)
    torch.testing.assert_close(dueling, expected)


def test_epsilon_written_to_the_weights_is_acted_with():
    model = QNetwork(MLP(SPECS))
    model.network.heads.policy.bias.data[2] = 5.0
    weights, policy = FlatWeights(model), LocalPolicy(model, contextlib.nullcontext)
    noise = np.random.default_rng(0).random((4000, 2), np.float32)
    act = lambda: policy.act({"observation": np.zeros((4000, 3), np.float32)}, np.zeros(4000), np.zeros((4000, 0)), noise)
    shares = {}
    for epsilon in (1.0, 0.2, 0.0):
        model.epsilon.fill_(epsilon)  # the last number of the vector, as a worker receives it
        assert weights.array[-1] == np.float32(epsilon)
        shares[epsilon] = (act().action == 2).mean()
    assert shares == pytest.approx({1.0: 0.25, 0.2: 0.85, 0.0: 1.0}, abs=0.03)


def test_refresh_in_reduced_precision_follows_epsilon_and_the_weights():
    autocast = lambda: torch.autocast("cpu", torch.bfloat16)
    model = QNetwork(NatureCNN(IMAGE, hidden=8), dueling=True)
    FlatWeights(model)
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 36, 36), np.uint8)
    plain, refreshed = (LocalPolicy(model, autocast, extras=["parameters"]) for _ in range(2))
    for epsilon in (1.0, 0.3):
        model.epsilon.fill_(epsilon)
        refreshed.refresh()
        found = [policy.act({"observation": frames}, np.zeros(3), np.zeros((3, 0)), None) for policy in (plain, refreshed)]
        np.testing.assert_allclose(found[0].extras["parameters"], found[1].extras["parameters"], rtol=1e-5, atol=1e-6)
        assert found[1].extras["parameters"][:, -1] == pytest.approx(epsilon)


def test_refresh_of_a_model_without_an_acting_copy_is_nothing():
    policy = LocalPolicy(QNetwork(MLP(SPECS)), lambda: torch.autocast("cpu", torch.bfloat16))
    policy.refresh()
    assert policy._acting is policy.model


def test_a_config_node_is_wrapped_and_its_mistakes_are_named():
    model = q_network(SPECS, {"_target_": "mpirl.models.mlp.MLP", "hidden": [8]}, dueling=True)
    assert model.dueling and model.network.heads.value.in_features == 8
    with pytest.raises(UserError, match="unknown key model.hiden"):
        q_network(SPECS, {"_target_": "mpirl.models.mlp.MLP", "hiden": [8]})


def test_continuous_actions_are_refused():
    with pytest.raises(UserError, match="need a discrete action"):
        QNetwork(MLP(Specs(SPECS.observation, ArraySpec((2,), "float32"))))
