"""MLP: what it sees, how it starts, and what it refuses."""

import pytest
import torch

from mpirl.errors import UserError
from mpirl.models.distributions import distribution_for
from mpirl.models.mlp import MLP, Heads
from mpirl.specs import ArraySpec, Specs

torch.set_num_threads(1)
DISCRETE = ArraySpec((), "int64", num_values=3)
PLAIN = Specs({"observation": ArraySpec((4,), "float32")}, DISCRETE)


def outputs(model, observation):
    n = len(next(iter(observation.values())))
    output, core = model(observation, torch.zeros(n, dtype=torch.uint8), model.initial(n))
    assert core.shape == (n, 0)
    return output


def test_discrete_fields_are_one_hot_and_others_flattened():
    specs = Specs({"observation.room": DISCRETE, "observation.map": ArraySpec((2, 2), "uint8")}, DISCRETE)
    observation = {"observation.room": torch.tensor([2]), "observation.map": torch.tensor([[[5, 6], [7, 8]]])}
    assert MLP(specs).features(observation).tolist() == [[0, 0, 1, 5, 6, 7, 8]]


def test_stacked_frames_are_all_seen():
    model = MLP(PLAIN, frame_stack=3)
    assert model.features({"observation": torch.arange(24.0).view(2, 3, 4)}).shape == (2, 12)


@pytest.mark.parametrize("shared, hidden", [(False, [64, 64]), (True, [32]), (False, [])])
def test_outputs_have_the_contracts_shapes(shared, hidden):
    output = outputs(MLP(PLAIN, hidden=hidden, shared=shared), {"observation": torch.randn(7, 4)})
    assert output.parameters.shape == (7, 3) and output.value.shape == (7,)


def test_policy_and_value_have_separate_trunks_unless_shared():
    for shared in (False, True):
        model = MLP(PLAIN, shared=shared)
        outputs(model, {"observation": torch.randn(7, 4)}).value.sum().backward()
        assert (model.policy_trunk[0].weight.grad is not None) == shared


def test_first_policy_is_nearly_uniform_and_layers_are_orthogonal():
    torch.manual_seed(0)
    model = MLP(PLAIN)
    assert outputs(model, {"observation": torch.randn(100, 4)}).parameters.abs().max() < 0.05
    weight = model.policy_trunk[2].weight
    torch.testing.assert_close(weight @ weight.t(), 2 * torch.eye(64))


def test_log_std_of_continuous_actions_is_a_parameter_of_its_own():
    model = MLP(Specs(PLAIN.observation, ArraySpec((2,), "float32")))
    model.heads.policy.log_std.data[:] = torch.tensor([-1.0, 2.0])
    parameters = outputs(model, {"observation": torch.randn(5, 4)}).parameters
    assert parameters[:, 2:].tolist() == [[-1.0, 2.0]] * 5


def test_outputs_are_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        output = outputs(MLP(PLAIN), {"observation": torch.randn(5, 4)})
    assert output.parameters.dtype == output.value.dtype == torch.float32


@pytest.mark.parametrize("settings", [{"activation": "gelu"}, {"hidden": [0]}, {"frame_stack": 0}])
def test_wrong_settings_are_named(settings):
    with pytest.raises(UserError, match=f"model.{next(iter(settings))}"):
        MLP(PLAIN, **settings)


@pytest.mark.parametrize("rows", [1, 5, 200])
def test_joined_heads_give_what_the_heads_do_for_few_and_many_rows(rows):
    heads = Heads(512, distribution_for(ArraySpec((), "int64", num_values=6)))
    features = torch.randn(rows, 512, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with torch.no_grad():
        expected, found = heads(features, features), heads.joined()(features)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
