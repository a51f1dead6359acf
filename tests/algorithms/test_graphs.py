"""Recorded gradient steps come to what the steps themselves do, with a recorder that works as CUDA graphs do: what is replayed are
the operations, on the memory that they had; numbers that Python held are as they were.
"""

import contextlib
import copy
import warnings

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mpirl.algorithms.base import Batch
from mpirl.algorithms.graphs import MOST_BATCHES, WARM_UP, Graphs
from mpirl.algorithms.ppo import PPO
from mpirl.models.mlp import MLP
from mpirl.models.stacking import ages, observe_with
from mpirl.specs import ArraySpec, Specs

torch.set_num_threads(1)
MID, LAST = 1, 2
N, T, SIZE = 4, 16, 16
SPECS = Specs({"observation": ArraySpec((3,), "float32")}, ArraySpec((), "int64", num_values=3))
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")  # operations that a CUDA graph cannot hold


class Tape(TorchDispatchMode):
    """Records the operations below autograd."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        name = function.overloadpacket.__name__
        if name in WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        result = function(*arguments, **(settings or {}))
        self.operations.append((function, arguments, settings or {}, result))
        return result

    def replay(self):
        for function, arguments, settings, result in self.operations:
            again = function(*arguments, **settings)
            if isinstance(result, torch.Tensor):
                pairs = [(result, again)]
            else:
                pairs = list(zip(result, again)) if isinstance(result, (tuple, list)) else []
            for old, new in pairs:
                if isinstance(old, torch.Tensor) and new.data_ptr() != old.data_ptr():  # else in place, or a view
                    old.copy_(new)


class Recorder:
    """Unlike CUDA's, its recording runs the step, so it puts back what that has changed. wrong: what it does besides."""

    def __init__(self, algorithm, wrong=lambda: None):
        self.algorithm, self.wrong = algorithm, wrong
        self.recorded, self.replayed, self.run_aside = [], 0, 0

    def aside(self, step):
        self.run_aside += 1
        return step()

    def record(self, step):
        optimizer, tape = self.algorithm.optimizer, Tape()
        state = [parameter.data for parameter in self.algorithm.model.parameters()]
        state += [value for kept in optimizer.state.values() for value in kept.values()]
        before = [tensor.clone() for tensor in state]
        with tape:
            outputs = step()
        for tensor, old in zip(state, before):
            tensor.copy_(old)
        self.recorded.append(tape)

        def replay():
            self.replayed += 1
            with torch.no_grad():
                tape.replay()
            self.wrong()

        return outputs, replay


class Resident:
    """A batch in memory that stays."""

    def __init__(self):
        self.fields = {
            "step_type": torch.full((N, T + 1), MID, dtype=torch.uint8),
            "action": torch.zeros(N, T, dtype=torch.int64),
            "log_prob": torch.full((N, T), -np.log(3.0), dtype=torch.float32),
            "value": torch.zeros(N, T + 1),
            "reward": torch.zeros(N, T),
            "discount": torch.ones(N, T),
        }
        self.observation, self.age = torch.zeros(N, T + 1, 3), ages(self.fields["step_type"])

    def load(self, number, is_resident, seams=3):
        """Filled anew, with `seams` steps on which nothing was decided."""
        draw = torch.Generator().manual_seed(number)
        self.observation.copy_(torch.randn(self.observation.shape, generator=draw))
        self.fields["action"].copy_(torch.randint(0, 3, (N, T), generator=draw))
        self.fields["reward"].copy_(torch.randn(N, T, generator=draw))
        self.fields["step_type"].fill_(MID)[0, 1 : 1 + seams] = LAST
        observe = observe_with({"observation": self.observation}, self.age, 1)
        progress, random = number / 10, np.random.default_rng(number)
        return Batch(self.fields, progress, random, observe, contextlib.nullcontext, resident=self if is_resident else None)


def ppo(**settings):
    torch.manual_seed(0)
    model = MLP(SPECS, hidden=[8])
    settings = {"minibatch_size": SIZE, "epochs": 2, "learning_rate": 0.01, "anneal_clip_range": True} | settings
    return PPO(model, SPECS, **settings)


def recording(algorithm, **settings):
    recorder = Recorder(algorithm, **settings)
    algorithm._graphs = Graphs(algorithm.optimizer, lambda device: recorder)
    return algorithm, recorder


def train(algorithm, batches, is_resident, updates=6):
    return [algorithm.learn(batches[n % len(batches)].load(n, is_resident, seams=2 + n)) for n in range(updates)]


def weights(algorithm):
    return [parameter.detach() for parameter in algorithm.model.parameters()]


@pytest.mark.parametrize("number", [1, 2])  # two: as with schedule.lag=1
def test_recorded_steps_train_as_the_steps_do(number):
    plain, (recorded, recorder) = ppo(), recording(ppo())
    expected, found = (train(x, [Resident() for _ in range(number)], x is recorded) for x in (plain, recorded))
    torch.testing.assert_close(weights(recorded), weights(plain), rtol=1e-4, atol=1e-6)
    for these, those in zip(found, expected):
        assert these == pytest.approx(those, rel=1e-3, abs=1e-5)
    assert len(recorder.recorded) == number and recorder.run_aside == WARM_UP
    full = sum((N * T - 2 - n) // SIZE for n in range(6)) * 2
    assert recorder.replayed == full - WARM_UP and recorder.replayed > 20


def test_nothing_in_a_step_waits_for_the_device_and_it_is_one_minibatch():
    algorithm, recorder = recording(ppo())
    train(algorithm, [Resident()], True)
    names = {function.overloadpacket.__name__ for function, *_ in recorder.recorded[0].operations}
    assert {"_fused_adam_", "index_select", "_foreach_norm"} <= names and not names & set(WAITS)


def test_the_optimizer_keeps_plain_numbers_and_a_checkpoint_goes_on():
    algorithm, _ = recording(ppo())
    train(algorithm, [Resident()], True)
    state = copy.deepcopy(algorithm.state_dict())  # whose tensors are its own
    group = state["optimizer"]["param_groups"][0]
    assert isinstance(group["lr"], float) and group["capturable"] is False
    other = ppo()
    other.load_state_dict(state)
    other.model.load_state_dict(algorithm.model.state_dict())
    other, again = recording(other)
    batches = [Resident(), Resident()]
    for n in range(6, 10):
        algorithm.learn(batches[0].load(n, True))
        other.learn(batches[1].load(n, True))
    assert again.recorded
    torch.testing.assert_close(weights(other), weights(algorithm), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wrong", ["weights", "statistics", "nothing moves"])
def test_a_recording_that_comes_to_something_else_is_not_used(wrong):
    plain, algorithm = ppo(), ppo()
    with torch.no_grad():
        break_it = {
            "weights": lambda: next(algorithm.model.parameters()).data.add_(0.01),
            "statistics": lambda: algorithm._graphs._held[batch].recording.outputs[0].mul_(2),
            "nothing moves": lambda: None,
        }[wrong]
    algorithm, recorder = recording(algorithm, wrong=break_it)
    if wrong == "nothing moves":
        recorder.record = lambda step: ((torch.zeros(6), torch.zeros(SIZE, 3)), lambda: None)
    batch = Resident()
    with pytest.warns(UserWarning, match="without a CUDA graph, and slower.* it does not come to the same"):
        train(algorithm, [batch], True)
    train(plain, [Resident()], False)
    torch.testing.assert_close(weights(algorithm), weights(plain), rtol=1e-4, atol=1e-6)
    assert recorder.replayed <= 1


class Waiting(PPO):
    def loss(self, batch, part, clip_range):
        loss, row, parameters = super().loss(batch, part, clip_range)
        return loss * (2.0 if loss.item() > 0 else 1.0), row, parameters


def test_a_step_that_cannot_be_recorded_runs_as_it_is():
    found = []
    for is_resident in (False, True):
        torch.manual_seed(0)
        algorithm = Waiting(MLP(SPECS, hidden=[8]), SPECS, minibatch_size=SIZE)
        algorithm, recorder = recording(algorithm)
        expects = pytest.warns(UserWarning, match="RuntimeError: operation not permitted when stream is capturing")
        with expects if is_resident else contextlib.nullcontext():
            train(algorithm, [Resident()], is_resident)
        assert not recorder.replayed
        found.append(weights(algorithm))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("settings", [{"target_kl": 0.5}, {"cuda_graph": False}])
def test_it_can_be_without(settings):
    algorithm, recorder = recording(ppo(**settings))
    train(algorithm, [Resident()], True)
    assert not recorder.run_aside and not recorder.recorded


def test_more_batches_than_can_be_held_are_learned_from_as_they_are():
    plain, (algorithm, recorder) = ppo(), recording(ppo())
    for n in range(3 * MOST_BATCHES):
        plain.learn(Resident().load(n % 9, False))
        algorithm.learn(Resident().load(n % 9, True))
    torch.testing.assert_close(weights(algorithm), weights(plain), rtol=1e-4, atol=1e-6)
    assert len(recorder.recorded) <= MOST_BATCHES


def test_on_the_cpu_and_with_a_plain_adam_nothing_is_recorded():
    weight = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.1)
    step = lambda columns, numbers, index: (columns[0][index] * numbers[0],)
    run = Graphs(optimizer, recorder=None).begin(step, "batch", [torch.arange(4.0)], [2.0], 4, 2)
    assert run(torch.tensor([1, 3]))[0].tolist() == [2.0, 6.0]
    algorithm = ppo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(algorithm, [Resident()], False)
    assert not algorithm._graphs._held


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("error:gradient steps run without")
def test_on_a_gpu_recorded_steps_train_as_the_steps_do():
    found = []
    for is_resident in (False, True):
        torch.manual_seed(0)
        algorithm = PPO(MLP(SPECS, hidden=[8]).cuda(), SPECS, minibatch_size=SIZE, learning_rate=0.01, anneal_clip_range=True)
        batch = Resident()
        batch.fields = {name: tensor.cuda() for name, tensor in batch.fields.items()}
        batch.observation, batch.age = batch.observation.cuda(), batch.age.cuda()
        train(algorithm, [batch], is_resident, updates=8)
        found.append(weights(algorithm))
    assert algorithm._graphs._held and not algorithm._graphs._is_off
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)
