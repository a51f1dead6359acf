"""The learner's device: precision is chosen by what is correct and fast, and on the CPU nothing is copied."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mpirl import device as device_module
from mpirl.device import (
    DeviceBatch,
    PublishedWeights,
    autocast_for,
    choose_device,
    choose_precision,
    compile_model,
    pinned,
    sample_inputs,
    time_pass,
)
from mpirl.errors import UserError
from mpirl.models.base import Model
from mpirl.models.conv import NatureCNN
from mpirl.models.mlp import MLP
from mpirl.specs import ArraySpec, Specs
from mpirl.trajectory import Layout, Trajectory
from mpirl.weights import FlatWeights

torch.set_num_threads(1)
CPU = torch.device("cpu")
SPECS = Specs({"observation": ArraySpec((8,), "float32")}, ArraySpec((), "int64", num_values=3))


@pytest.fixture(scope="module")
def large():
    return MLP(SPECS, hidden=(400, 400))


def pretend(monkeypatch, bf16_seconds, bf16_error=0.0, hardware=True):
    """Let the passes take and return what the test says; fp32 takes 1 second. Returns the list of passes."""
    passes = []

    def time_pass(model, inputs, autocast):
        is_bf16 = autocast is not device_module.nullcontext
        passes.append("bf16" if is_bf16 else "fp32")
        outputs = torch.linspace(-2, 2, 12).view(4, 3)
        return (bf16_seconds, outputs + bf16_error) if is_bf16 else (1.0, outputs)

    monkeypatch.setattr(device_module, "time_pass", time_pass)
    monkeypatch.setattr(device_module, "has_bfloat16", lambda device: hardware)
    return passes


@pytest.mark.parametrize(
    "seconds, error, choice",
    [
        (0.5, 0.0, "bf16"),
        (0.5, 0.1, "bf16"),  # 5 % of the largest output
        (0.5, 0.3, "fp32"),
        (0.5, float("nan"), "fp32"),
        (0.5, float("inf"), "fp32"),
        (0.8, 0.0, "bf16"),
        (0.9, 0.0, "fp32"),
        (2.0, 0.0, "fp32"),
    ],
)
def test_auto_takes_bf16_only_where_it_is_correct_and_clearly_faster(monkeypatch, large, seconds, error, choice):
    passes = pretend(monkeypatch, seconds, error)
    assert choose_precision("auto", large, SPECS, CPU) == choice
    assert sorted(set(passes)) == ["bf16", "fp32"]


def test_auto_does_not_try_where_the_hardware_has_no_bf16(monkeypatch, large):
    passes = pretend(monkeypatch, 0.1, hardware=False)
    assert choose_precision("auto", large, SPECS, CPU) == "fp32" and not passes


def test_auto_does_not_try_small_models(monkeypatch):
    passes = pretend(monkeypatch, 0.1)
    assert choose_precision("auto", MLP(SPECS), SPECS, CPU) == "fp32" and not passes


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_precision_that_is_asked_for_is_not_checked(monkeypatch, large, precision):
    passes = pretend(monkeypatch, 9.0, 9.0)
    assert choose_precision(precision, large, SPECS, CPU) == precision and not passes


def test_unknown_precision_is_refused():
    with pytest.raises(UserError, match="precision='fp16': choose auto, fp32 or bf16"):
        choose_precision("fp16", MLP(SPECS), SPECS, CPU)


def test_the_check_leaves_weights_and_gradients_as_they_were(monkeypatch):
    monkeypatch.setattr(device_module, "has_bfloat16", lambda device: True)
    model = MLP(SPECS, hidden=(400, 400))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert choose_precision("auto", model, SPECS, CPU) in ("fp32", "bf16")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_pass_yields_parameters_and_values_in_float32(large):
    inputs = sample_inputs(large, SPECS, 16, CPU)
    for precision in ("fp32", "bf16"):
        seconds, outputs = time_pass(large, inputs, autocast_for(CPU, precision))
        assert seconds > 0 and outputs.shape == (16, 4) and outputs.dtype == torch.float32 and not outputs.requires_grad


def test_sample_inputs_have_the_shapes_and_ranges_of_the_specs():
    fields = {
        "observation.camera": ArraySpec((4, 5), "uint8"),
        "observation.room": ArraySpec((), "int32", num_values=3),
        "observation.speed": ArraySpec((2,), "float64"),
    }
    model = Model()
    model.frame_stack = 2
    inputs = sample_inputs(model, Specs(fields, SPECS.action), 50, CPU)
    assert {name: tuple(value.shape) for name, value in inputs.items()} == {
        "observation.camera": (50, 2, 4, 5),
        "observation.room": (50, 2),
        "observation.speed": (50, 2, 2),
    }
    assert [value.dtype for value in inputs.values()] == [torch.uint8, torch.int32, torch.float64]
    assert set(inputs["observation.room"].flatten().tolist()) == {0, 1, 2}
    assert inputs["observation.camera"].max() > 200


def test_device_names(monkeypatch):
    assert choose_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1").index == 1


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "meta", "mps"])
def test_unknown_devices_are_refused(name):
    with pytest.raises(UserError, match="write auto, cpu, cuda or cuda:N"):
        choose_device(name)


def test_missing_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="device='cuda:1': torch sees 1 GPUs here"):
        choose_device("cuda:1")


def test_a_compiled_model_is_one_graph_of_the_same_function():
    specs = Specs({"observation": ArraySpec((36, 36), "uint8")}, SPECS.action)
    model = NatureCNN(specs, frame_stack=1, hidden=8)
    same, inputs = copy.deepcopy(model), sample_inputs(model, specs, 4, CPU)
    compile_model(same, backend="eager", fullgraph=True)
    for plain, compiled in zip(*(gradients_of(network, inputs) for network in (model, same))):
        torch.testing.assert_close(compiled, plain)


def test_a_model_that_cannot_be_compiled_runs_as_it_is():
    def no_compiler(graph, inputs):
        raise RuntimeError("no C++ compiler")

    model = MLP(SPECS, hidden=(4,))
    inputs = sample_inputs(model, SPECS, 4, CPU)
    expected = gradients_of(model, inputs)
    compile_model(model, backend=no_compiler)
    assert all(torch.equal(*pair) for pair in zip(gradients_of(model, inputs), expected))


def gradients_of(model, inputs):
    output = model(inputs, torch.ones(4), torch.zeros(4, 0))[0]
    return torch.autograd.grad(output.parameters.square().sum() + output.value.sum(), list(model.parameters()))


def test_precisions_are_compared_in_one_thread_each(monkeypatch, large):
    threads = []
    monkeypatch.setattr(device_module, "has_bfloat16", lambda device: True)
    time_pass = device_module.time_pass
    monkeypatch.setattr(
        device_module, "time_pass", lambda *given: (threads.append(torch.get_num_threads()), time_pass(*given))[1]
    )
    torch.set_num_threads(2)
    choose_precision("auto", large, SPECS, CPU)
    assert torch.get_num_threads() == 2 and set(threads) == {1}
    torch.set_num_threads(1)


def filled_batch():
    batch = Trajectory.allocate(Layout(SPECS, steps=4), 3, pinned(CPU))
    batch["observation"][:] = np.random.default_rng(0).standard_normal(batch["observation"].shape)
    return batch


def test_fields_on_the_cpu_are_the_memory_that_the_gather_fills():
    batch = filled_batch()
    resident = DeviceBatch(batch, MLP(SPECS), CPU, autocast_for(CPU, "fp32"))
    for _ in range(2):
        batch["reward"][:] += 1
        loaded = resident.load(0.25, np.random.default_rng(1))
        for name, array in batch.items():
            assert np.shares_memory(loaded.fields[name].numpy(), array) or not array.size, name
        assert (loaded.num_lanes, loaded.num_steps, loaded.progress) == (3, 4, 0.25)
        np.testing.assert_array_equal(loaded.fields["reward"].numpy(), batch["reward"])


def test_a_loaded_batch_observes_flat_positions():
    batch = filled_batch()
    loaded = DeviceBatch(batch, MLP(SPECS), CPU, autocast_for(CPU, "fp32")).load(0.0, np.random.default_rng(1))
    observed = loaded.observe(torch.tensor([0, 4, 5, 14]))["observation"]
    np.testing.assert_array_equal(observed.numpy(), batch["observation"][[0, 0, 1, 2], [0, 4, 0, 4]])


def test_autocast_computes_in_the_precision_it_is_for():
    x = torch.ones(2, 2)
    with autocast_for(CPU, "bf16")():
        assert (x @ x).dtype == torch.bfloat16
    with autocast_for(CPU, "fp32")():
        assert (x @ x).dtype == torch.float32


def test_published_weights_on_the_cpu_are_the_parameters():
    model = MLP(SPECS, hidden=(4,))
    weights = PublishedWeights(FlatWeights(model))
    with torch.no_grad():
        next(model.parameters()).fill_(3.0)
    weights.publish()
    assert (weights.array == 3).sum() >= next(model.parameters()).numel()
    weights.load(torch.full_like(weights.flat.vector, 5.0))
    assert (weights.array == 5).all() and (next(model.parameters()) == 5).all()


def test_weights_of_another_model_are_refused():
    weights = PublishedWeights(FlatWeights(MLP(SPECS, hidden=(4,))))
    with pytest.raises(UserError, match="the checkpoint holds 3 weights, this model has"):
        weights.load(torch.zeros(3))


def test_on_a_device_a_batch_and_what_it_shows_stay_in_their_memory(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: tensor.clone())  # a device that is not the host
    layout = Layout(SPECS, steps=5, context=2)
    batch, model = Trajectory.allocate(layout, 2), MLP(SPECS, frame_stack=3)
    batch["step_type"][...] = 1
    device_batch = DeviceBatch(batch, model, SimpleNamespace(type="elsewhere"), autocast_for(CPU, "fp32"))
    first = device_batch.load(0.0, np.random.default_rng(0))
    batch["observation"][...], batch["step_type"][:, 3] = 7.0, 0
    second = device_batch.load(0.0, np.random.default_rng(1))
    assert first.resident is second.resident is not None
    assert all(first.fields[name] is tensor for name, tensor in second.fields.items())
    for shown in (first, second):  # also what was made before the second load shows the second batch
        stack = shown.observe(torch.tensor([2, 3]))["observation"]
        assert torch.equal(stack[0], torch.full((3, 8), 7.0))
        assert not stack[1, :2].any() and torch.equal(stack[1, 2], torch.full((8,), 7.0))
    assert device_batch.of(batch).load(0.0, np.random.default_rng(0)).resident is not first.resident


def test_on_the_host_a_batch_is_not_resident():
    batch = Trajectory.allocate(Layout(SPECS, steps=5, context=0), 2)
    assert DeviceBatch(batch, MLP(SPECS), CPU, autocast_for(CPU, "fp32")).load(0.0, np.random.default_rng(0)).resident is None
