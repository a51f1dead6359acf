"""Rows shared among threads: the same function, gradients and precision, whatever the number of threads."""

import threading

import pytest
import torch
from torch import nn

from mpirl.models.conv import NatureCNN
from mpirl.models import sharing
from mpirl.models.sharing import SMALLEST, in_shares, use_threads
from mpirl.specs import ArraySpec, Specs

SPECS = Specs(
    {"observation.image": ArraySpec((36, 36), "uint8"), "observation.speed": ArraySpec((), "float32")},
    ArraySpec((), "int64", num_values=3),
)


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """Two threads of torch's, and one again after the test."""
    monkeypatch.setattr(sharing, "_most", 0)
    torch.set_num_threads(2)
    yield 2
    assert torch.get_num_threads() == 2, "the caller's number of threads was changed"
    torch.set_num_threads(1)


def observed(rows, k=2):
    draw = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (rows, k, 36, 36), dtype=torch.uint8, generator=draw)
    return {"observation.image": image, "observation.speed": torch.randn(rows, k, generator=draw)}


def learn(model, rows, precision=None):
    """Output and gradients for random rows."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is not None):
        output = model(observed(rows), torch.zeros(rows), torch.zeros(rows, 0))[0]
    loss = output.parameters.square().sum() * 100 + output.value.square().sum()
    return output, torch.autograd.grad(loss, list(model.parameters()))


def network():
    torch.manual_seed(0)
    return NatureCNN(SPECS, frame_stack=2, hidden=16)


@pytest.mark.parametrize("rows", [2 * SMALLEST - 1, 2 * SMALLEST, 2 * SMALLEST + 3])
def test_shared_gradient_is_the_whole_one(rows):
    model = network()
    shared = learn(model, rows)
    torch.set_num_threads(1)
    whole = learn(model, rows)
    torch.set_num_threads(2)
    torch.testing.assert_close(shared, whole, atol=1e-5, rtol=1e-4)


def test_results_do_not_depend_on_timing():
    model = network()
    first = learn(model, 2 * SMALLEST)
    for _ in range(5):
        assert all(torch.equal(*pair) for pair in zip(first[1], learn(model, 2 * SMALLEST)[1]))


def test_shares_compute_in_the_callers_precision():
    model, dtypes = network(), []
    model.conv3.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    learn(model, 2 * SMALLEST, "bf16")
    learn(model, 2 * SMALLEST)
    assert dtypes == [torch.bfloat16] * 2 + [torch.float32] * 2


def test_each_thread_takes_its_rows_with_one_thread_of_torch():
    weight, seen = nn.Parameter(torch.ones(1)), {}

    def layers(rows):
        seen[threading.get_ident()] = rows, torch.get_num_threads()
        return weight * torch.arange(200.0)[rows]

    assert torch.equal(in_shares(layers, 200, [weight]), torch.arange(200.0))
    assert sorted((rows.start, rows.stop, threads) for rows, threads in seen.values()) == [(0, 100, 1), (100, 200, 1)]


@pytest.mark.parametrize("number, busy, each", [(3, 0, 3), (3, 1, 2), (3, 3, 2), (2, 2, 1), (1, 4, 1)])
def test_busy_cores_are_left_out_of_single_operations_only(number, busy, each):
    weight, shares = nn.Parameter(torch.ones(1)), []

    def layers(rows):
        shares.append(torch.get_num_threads())
        return weight * torch.ones(3 * SMALLEST)[rows]

    try:
        use_threads(number, busy)
        in_shares(layers, 3 * SMALLEST, [weight])
        assert torch.get_num_threads() == each
        assert shares == ([1] * number if number > 1 else [each])
    finally:
        torch.set_num_threads(2)


@pytest.mark.parametrize("why", ["few rows", "no gradient", "nothing to learn"])
def test_without_need_the_caller_does_all_rows(why):
    weight, seen = nn.Parameter(torch.ones(1), requires_grad=why != "nothing to learn"), []

    def layers(rows):
        seen.append(rows)
        return weight * torch.arange(1000.0)[rows]

    num_rows = 2 * SMALLEST - 1 if why == "few rows" else 1000
    with torch.set_grad_enabled(why != "no gradient"):
        in_shares(layers, num_rows, [weight])
    assert seen == [slice(0, num_rows)]


def test_frozen_parameters_stay_out():
    model = network()
    model.conv1.requires_grad_(False)
    output = model(observed(2 * SMALLEST), torch.zeros(2 * SMALLEST), torch.zeros(2 * SMALLEST, 0))[0]
    output.value.sum().backward()
    assert model.conv1.weight.grad is None and model.conv2.weight.grad.abs().sum() > 0


def test_a_mistake_in_any_share_is_raised():
    weight = nn.Parameter(torch.ones(1))

    def layers(rows):
        if rows.start:
            raise ArithmeticError("second share")
        return weight * torch.ones(100)

    with pytest.raises(ArithmeticError, match="second share"):
        in_shares(layers, 200, [weight])
