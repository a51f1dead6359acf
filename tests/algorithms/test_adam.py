"""Adam without torch's wrappers is torch's Adam, bit for bit."""

import subprocess
import sys

import pytest
import torch

from mpirl.algorithms.adam import Adam

LEAN = """
import sys, torch
from mpirl.algorithms.adam import Adam
weight = torch.ones(3, requires_grad=True)
optimizer = Adam([weight], lr=0.1, fused=True)
optimizer.zero_grad()
weight.sum().backward()
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
assert weight.requires_grad and not weight.eq(1).any()
sys.exit("torch._dynamo" in sys.modules)
"""


def trained(kind: type[torch.optim.Optimizer], steps: int, fused: bool, halfway: type[torch.optim.Optimizer] | None = None):
    """Weights and optimizer after steps, from the middle on with a new optimizer of another kind, with the first's state."""
    torch.manual_seed(0)
    model = torch.nn.Linear(7, 3)
    optimizer = kind(model.parameters(), lr=0.01, eps=1e-5, fused=fused)
    for step in range(steps):
        if halfway and step == steps // 2:
            state, optimizer = optimizer.state_dict(), halfway(model.parameters(), lr=9.0)
            optimizer.load_state_dict(state)
        optimizer.zero_grad(set_to_none=True)
        model(torch.randn(5, 7)).square().sum().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()], optimizer


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("halfway", [None, torch.optim.Adam, Adam])
def test_it_steps_as_torchs_adam_bit_for_bit_also_with_its_state(fused, halfway):
    expected, reference = trained(torch.optim.Adam, 20, fused)
    found, optimizer = trained(Adam, 20, fused, halfway)
    assert all(torch.equal(*pair) for pair in zip(found, expected))
    assert optimizer.state_dict()["param_groups"] == reference.state_dict()["param_groups"]


def test_steps_leave_no_graph_behind():
    weights, _ = trained(Adam, 2, False)
    assert all(weight.grad_fn is None for weight in weights)


def test_a_closure_is_evaluated_with_gradients():
    weight = torch.ones(1, requires_grad=True)
    optimizer = Adam([weight], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1.0 and weight.item() == pytest.approx(0.5)


def test_it_does_not_load_what_compiles():
    assert subprocess.run([sys.executable, "-c", LEAN]).returncode == 0
