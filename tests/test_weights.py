"""FlatWeights: the vector and the module are the same memory, whatever happens to the module."""

import numpy as np
import pytest
import torch
from torch import nn

from mpirl.errors import UserError
from mpirl.weights import FlatWeights

torch.set_num_threads(1)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))


def flat(module):
    tensors = [*module.parameters(), *(buffer for buffer in module.buffers() if buffer.is_floating_point())]
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def test_vector_holds_the_modules_values():
    module = network()
    before = flat(module).clone()
    weights = FlatWeights(module)
    assert weights.size == len(before) == 3 * 5 + 5 + 10 + 12 + 10
    assert torch.equal(weights.vector, before) and torch.equal(flat(module), before)


def test_writing_the_array_loads_the_module():
    source, target = FlatWeights(network()), network()
    weights = FlatWeights(target)
    assert weights.array.dtype == np.float32 and weights.array.flags.c_contiguous
    weights.array[:] = 0
    assert not flat(target).any()
    weights.array[:] = source.array
    x = torch.randn(4, 3)
    torch.testing.assert_close(target.eval()(x), network().eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("fused", [False, True])
def test_aliasing_outlives_optimizer_steps(fused):
    module = network()
    weights = FlatWeights(module)
    before = weights.array.copy()
    optimizer = torch.optim.Adam(module.parameters(), fused=fused)
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    assert torch.equal(weights.vector, flat(module)) and (weights.array != before).mean() > 0.9


def test_aliasing_outlives_load_state_dict():
    module = network()
    weights = FlatWeights(module)
    module.load_state_dict({name: torch.full_like(value, 2) for name, value in network().state_dict().items()})
    assert (weights.array == 2).all()


def test_tied_parameters_count_once():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    assert FlatWeights(module).size == 16 + 4 + 4
    assert module[1].weight.data_ptr() == module[0].weight.data_ptr()


def test_module_without_weights_has_an_empty_vector():
    assert FlatWeights(nn.Tanh()).array.shape == (0,)


def test_other_precisions_are_refused_by_name():
    with pytest.raises(UserError, match="Sequential.0.weight is torch.float64"):
        FlatWeights(network().double())
