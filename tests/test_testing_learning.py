"""The conformance kits of models and algorithms let good examples pass and name what is wrong with bad ones."""

import numpy as np
import pytest
import torch
from torch import nn

from mpirl.algorithms.base import Algorithm
from mpirl.models.base import Model, Output
from mpirl.models.distributions import Categorical
from mpirl.specs import ArraySpec, Specs, StepType
from mpirl.testing import check_algorithm, check_model

SPECS = Specs({"observation": ArraySpec((2,), "float32", low=0.0, high=30.0)}, ArraySpec((), "int64", num_values=2))


class Linear(Model):
    """A good model, with a recurrent state if `core_size` says so."""

    def __init__(self, specs: Specs, core_size: int = 0):
        super().__init__()
        self.core_size = core_size
        self.distribution = Categorical(specs.action.num_values)
        self.layer = nn.Linear(2 + core_size, self.distribution.num_parameters + 1)

    def forward(self, observation, step_type, core):
        core = torch.where((step_type == StepType.FIRST)[:, None], 0.0, core)
        inputs = torch.cat([observation["observation"], core], -1)
        outputs = self.layer(inputs)
        return Output(outputs[:, :-1], outputs[:, -1]), torch.tanh(core + inputs[:, :1])


class MixesRows(Linear):
    def forward(self, observation, step_type, core):
        mean = {name: array - array.mean(0) for name, array in observation.items()}
        return super().forward(mean, step_type, core)


class DropsOut(Linear):
    def forward(self, observation, step_type, core):
        return super().forward({"observation": torch.dropout(observation["observation"], 0.5, True)}, step_type, core)


class KeepsCore(Linear):
    def forward(self, observation, step_type, core):
        return super().forward(observation, torch.ones_like(step_type), core)


class WrongValueShape(Linear):
    def forward(self, observation, step_type, core):
        output, core = super().forward(observation, step_type, core)
        return output._replace(value=output.value[:, None]), core


class DoublePrecision(Linear):
    def __init__(self, specs):
        super().__init__(specs)
        self.register_buffer("scale", torch.ones(1, dtype=torch.float64))


class NoGradient(Linear):
    def forward(self, observation, step_type, core):
        output, core = super().forward(observation, step_type, core)
        return output._replace(value=torch.zeros(len(step_type), requires_grad=True)), core


class OtherActing(Linear):
    def acting_copy(self, dtype):
        return Linear(SPECS) if dtype == torch.bfloat16 else self


class OtherChoice(Categorical):
    def lean(self):
        return lambda parameters, noise: (np.ones(len(parameters), np.int64), parameters[:, 1])


class OtherLogProb(Categorical):
    def lean(self):
        choose = Categorical(self.num_parameters).lean()
        return lambda *given: (choose(*given)[0], choose(*given)[1] + 0.1)


class WrongEntropy(Categorical):
    def entropy(self, parameters):
        return super().entropy(parameters) + 0.1


class WrongLogProb(Categorical):
    def log_prob(self, parameters, action):
        return super().log_prob(parameters, 1 - action)


class UnseededSample(Categorical):
    def sample(self, parameters, noise):
        return super().sample(parameters, torch.rand_like(noise))


class WrongSampleDtype(Categorical):
    def sample(self, parameters, noise):
        return super().sample(parameters, noise).float()


@pytest.mark.parametrize("core_size", [0, 3])
def test_a_good_model_passes(core_size):
    check_model(Linear(SPECS, core_size), SPECS)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: MixesRows(SPECS), "rows must not mix"),
        (lambda: DropsOut(SPECS), "rows must not mix"),
        (lambda: KeepsCore(SPECS, 3), "zero it there"),
        (lambda: WrongValueShape(SPECS), "output.value has shape"),
        (lambda: NoGradient(SPECS), "no gradient flows from output.value"),
        (lambda: DoublePrecision(SPECS), "scale is torch.float64"),
        (lambda: Linear(SPECS).double(), "torch.float64"),
        (lambda: OtherActing(SPECS), "acting_copy.torch.bfloat16. computes something else"),
    ],
)
def test_a_bad_model_is_noticed(make, complaint):
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match=complaint):
        check_model(make(), SPECS)


@pytest.mark.parametrize(
    ("distribution", "complaint"),
    [
        (WrongEntropy, "entropy says"),
        (WrongLogProb, "likelier than the mode"),
        (UnseededSample, "no function of parameters and noise"),
        (WrongSampleDtype, "sample is torch.float32"),
        (OtherChoice, "lean.. chooses other actions"),
        (OtherLogProb, "lean.. gives other log-probabilities"),
    ],
)
def test_a_bad_distribution_is_noticed(distribution, complaint):
    torch.manual_seed(0)
    model = Linear(SPECS)
    model.distribution = distribution(2)
    with pytest.raises(AssertionError, match=complaint):
        check_model(model, SPECS)


class Reinforce(Algorithm):
    """A good algorithm: policy gradient with momentum, and a value that is regressed on the reward."""

    def __init__(self, model, specs):
        self.model, self.updates = model, 0
        self.optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)

    @staticmethod
    def extras(specs):
        return {"value": ArraySpec((), "float32")}

    def learn(self, batch):
        self.updates += 1
        loss = self.loss(batch, self.weight(batch))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"learned": self.count(batch), "loss": loss.item(), "updates": self.updates}

    def weight(self, batch):
        """[N, T] weights of the steps."""
        return batch.is_step.float()

    def count(self, batch):
        return int(batch.is_step.sum())

    def loss(self, batch, weight):
        N, T = weight.shape
        index = (torch.arange(N)[:, None] * (T + 1) + torch.arange(T)).flatten()
        step_type = batch.fields["step_type"].flatten()[index]
        output, _ = self.model(batch.observe(index), step_type, self.model.initial(len(index)))
        log_prob = self.model.distribution.log_prob(output.parameters, batch.fields["action"].flatten())
        reward = batch.fields["reward"].flatten()
        loss = -log_prob * reward + (output.value - reward).square()
        return (loss * weight.flatten()).sum() / weight.sum().clamp(min=1)

    def state_dict(self):
        return {"optimizer": self.optimizer.state_dict(), "updates": self.updates}

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]


class LearnsFromSeams(Reinforce):
    def weight(self, batch):
        return torch.ones_like(batch.fields["reward"])


class CountsSeams(Reinforce):
    def count(self, batch):
        return batch.is_step.numel()


class LearnsNothing(Reinforce):
    def weight(self, batch):
        return 0 * batch.is_step


class ForgetsMomentum(Reinforce):
    def load_state_dict(self, state):
        self.updates = state["updates"]


class ForgetsCounter(Reinforce):
    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state["optimizer"])


class SavesObjects(Reinforce):
    def state_dict(self):
        return super().state_dict() | {"model": self.model}


class DividesByZero(Reinforce):
    def loss(self, batch, weight):
        return super().loss(batch, weight) / weight.sum()


class IsUnseeded(Reinforce):
    def weight(self, batch):
        return super().weight(batch) * torch.rand(batch.is_step.shape)


class OverwritesTheBatch(Reinforce):
    def learn(self, batch):
        batch.fields["reward"].clamp_(-0.1, 0.1)
        return super().learn(batch)


class ReplacesParameters(Reinforce):
    def learn(self, batch):
        statistics = super().learn(batch)
        for parameter in self.model.parameters():
            parameter.data = parameter.data.clone()
        return statistics


class BootstrapsFromTerminalValue(Reinforce):
    def loss(self, batch, weight):
        return super().loss(batch, weight) + batch.fields["value"][:, 1:].mean()


@pytest.mark.parametrize("core_size", [0, 3])
def test_a_good_algorithm_passes(core_size):
    check_algorithm(Reinforce, Linear(SPECS, core_size), SPECS)


@pytest.mark.parametrize(
    ("algorithm", "complaint"),
    [
        (LearnsFromSeams, "seam has influence"),
        (BootstrapsFromTerminalValue, "seam has influence"),
        (CountsSeams, '"learned"'),
        (LearnsNothing, "not changed"),
        (ForgetsMomentum, "state_dict does not restore"),
        (ForgetsCounter, "state_dict does not restore"),
        (SavesObjects, "weights_only"),
        (DividesByZero, "not finite"),
        (IsUnseeded, "state_dict|second time"),
        (OverwritesTheBatch, "changed the batch's reward"),
        (ReplacesParameters, "memory of parameters"),
    ],
)
def test_a_bad_algorithm_is_noticed(algorithm, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_algorithm(algorithm, Linear(SPECS), SPECS)
