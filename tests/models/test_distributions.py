"""Action distributions: samples follow the probabilities, and the formulas agree with torch.distributions."""

import numpy as np
import pytest
import torch

from mpirl.errors import UserError
from mpirl.models.distributions import Categorical, DiagonalGaussian, EpsilonGreedy, distribution_for
from mpirl.specs import ArraySpec

torch.set_num_threads(1)


def logits(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_categorical_formulas_agree_with_torch():
    parameters, action = logits(50, 6), torch.arange(50) % 6
    reference = torch.distributions.Categorical(logits=parameters)
    distribution = Categorical(6)
    torch.testing.assert_close(distribution.log_prob(parameters, action), reference.log_prob(action))
    torch.testing.assert_close(distribution.entropy(parameters), reference.entropy())


def test_categorical_samples_have_the_probabilities():
    parameters = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log().expand(100_000, 4)
    noise = torch.from_numpy(np.random.default_rng(0).random((100_000, 1), np.float32))
    frequencies = Categorical(4).sample(parameters, noise).bincount() / 100_000
    torch.testing.assert_close(frequencies, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.01, rtol=0)


@pytest.mark.parametrize("noise", [0.0, 0.5, float(np.float32(1) - np.float32(2**-24))])
def test_categorical_never_samples_an_impossible_action(noise):
    parameters = logits(1000, 9)
    parameters[:, [0, 4, 8]] = -torch.inf
    action = Categorical(9).sample(parameters, torch.full((1000, 1), noise))
    assert not (set(action.tolist()) & {0, 4, 8}) and action.max() < 9


def test_categorical_entropy_with_an_impossible_action_has_finite_gradient():
    parameters = torch.tensor([[0.0, -torch.inf, 1.0]], requires_grad=True)
    Categorical(3).entropy(parameters).sum().backward()
    assert parameters.grad.isfinite().all()


@pytest.mark.parametrize("distribution", [Categorical(4), DiagonalGaussian((2,))])
def test_bfloat16_parameters_are_computed_with_in_float32(distribution):
    parameters = logits(20, 4).bfloat16()
    action = distribution.mode(parameters)
    assert distribution.log_prob(parameters, action).dtype == torch.float32
    assert torch.equal(distribution.entropy(parameters), distribution.entropy(parameters.float()))


def test_extreme_logits_stay_finite():
    parameters = torch.tensor([[1e4, -1e4, 0.0]])
    assert Categorical(3).log_prob(parameters, torch.tensor([1])).item() == -2e4
    assert Categorical(3).entropy(parameters).item() == 0


def test_gaussian_formulas_agree_with_torch():
    parameters, noise = logits(30, 6), torch.randn(30, 3)
    mean, log_std = parameters.split(3, -1)
    reference = torch.distributions.Normal(mean, log_std.exp())
    distribution = DiagonalGaussian((3,))
    action = distribution.sample(parameters, noise)
    torch.testing.assert_close(action, mean + noise * log_std.exp())
    torch.testing.assert_close(distribution.log_prob(parameters, action), reference.log_prob(action).sum(-1))
    torch.testing.assert_close(distribution.entropy(parameters), reference.entropy().sum(-1))


def test_actions_have_the_shape_and_dtype_of_the_spec():
    for spec in [ArraySpec((), "int32", num_values=3), ArraySpec((2, 2), "float64"), ArraySpec((), "float32")]:
        distribution = distribution_for(spec)
        action = distribution.sample(logits(5, distribution.num_parameters), torch.zeros(5, distribution.noise_size))
        assert action.shape == (5, *spec.shape) and str(action.dtype) == f"torch.{spec.dtype}"
        assert distribution.log_prob(logits(5, distribution.num_parameters), action).shape == (5,)


def test_unsupported_actions_are_the_users_mistake():
    with pytest.raises(UserError, match=r"shape \(3,\) and dtype int64"):
        distribution_for(ArraySpec((3,), "int64"))


def greedy_parameters(epsilon, rows=1):
    """Four action values of which the third is the largest, then epsilon."""
    return torch.tensor([[0.1, -2.0, 3.0, 2.9, epsilon]]).repeat(rows, 1)


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_greedy_explores_every_action_alike(epsilon):
    noise = torch.from_numpy(np.random.default_rng(0).random((40_000, 2), np.float32))
    action = EpsilonGreedy(4).sample(greedy_parameters(epsilon, 40_000), noise)
    share = torch.bincount(action, minlength=4) / 40_000
    expected = torch.tensor([0, 0, 1 - epsilon, 0]) + epsilon / 4
    torch.testing.assert_close(share, expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0, -0.5, 1.5])
def test_epsilon_greedy_formulas_agree_with_torch(epsilon):
    distribution, parameters = EpsilonGreedy(4), greedy_parameters(epsilon, 4)
    inside = min(max(epsilon, 0.0), 1.0)
    probabilities = torch.tensor([0, 0, 1 - inside, 0]) + inside / 4
    torch.testing.assert_close(distribution.log_prob(parameters, torch.arange(4)), probabilities.log())
    reference = torch.distributions.Categorical(probs=probabilities).entropy()
    torch.testing.assert_close(distribution.entropy(parameters)[0], reference, atol=1e-5, rtol=1e-5)


def test_epsilon_greedy_mode_is_the_first_of_the_largest_values():
    parameters = torch.tensor([[1.0, 2.0, 2.0, 0.9], [3.0, 3.0, 3.0, 0.9]])
    assert EpsilonGreedy(3, torch.int32).mode(parameters).tolist() == [1, 0]


def test_noise_at_its_edges_names_an_action():
    edge = 1 - 2**-24  # the largest float32 below 1
    for second in (0.0, edge):
        action = EpsilonGreedy(7).sample(torch.zeros(1, 8) + 1.0, torch.tensor([[edge, second]]))
        assert 0 <= action.item() <= 6
