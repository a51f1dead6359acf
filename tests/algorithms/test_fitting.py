"""Fitting: gradients are clipped as torch does, what is not finite cannot hide, and minibatches cover every step."""

import pytest
import torch
from torch import nn

from mpirl.algorithms.fitting import clip, descend

torch.set_num_threads(1)


def gradients():
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=draw) for shape in ((3, 4), (5,), (2, 2, 2))]


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_is_torchs_bit_for_bit(max_norm):
    ours, parameters = gradients(), [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients()]
    for parameter, gradient in zip(parameters, gradients()):
        parameter.grad = gradient
    nn.utils.clip_grad_norm_(parameters, max_norm)
    clip(ours, max_norm)
    assert all(torch.equal(gradient, parameter.grad) for gradient, parameter in zip(ours, parameters))


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_one_gradient_that_is_not_finite_shows_in_all(bad):
    found = gradients()
    found[1][2] = bad
    clip(found, 0.5)
    assert all(gradient.isnan().all() for gradient in found)


def test_parameters_that_the_loss_does_not_need_are_left_alone():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    descend(used.sum(), torch.optim.SGD([used, unused], lr=1.0), max_grad_norm=10.0)
    assert used.tolist() == [0.0, 0.0] and unused.tolist() == [1.0, 1.0]
