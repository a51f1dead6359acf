"""The conformance kit of algorithms, on synthetic batches."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from mpirl.algorithms.base import Algorithm, Batch
from mpirl.models.base import Model
from mpirl.models.stacking import observer
from mpirl.seeds import LEARNING, generator
from mpirl.specs import Specs, StepType
from mpirl.testing_models import Fields, sample_noise, sample_observations
from mpirl.trajectory import NO_SEED, Layout, Trajectory


def check_algorithm(make: Callable[[Model, Specs], Algorithm], model: Model, specs: Specs) -> None:
    """See mpirl.testing.check_algorithm."""
    one, two = (synthetic_fields(make(copy.deepcopy(model), specs), model, specs, seed) for seed in (1, 2))
    run = Run(make, model, specs)
    before = run.weights()
    places = [parameter.data_ptr() for parameter in run.model.parameters()]
    run.learn(one, 1)
    is_same = all(torch.equal(was, now) for was, now in zip(before, run.weights()))
    assert not is_same, "learn has not changed the model's parameters"
    resumed = run.resumed()
    run.learn(two, 2)
    assert places == [parameter.data_ptr() for parameter in run.model.parameters()], (
        "learn has replaced the memory of parameters: update them in place, others share it"
    )
    resumed.learn(two, 2)
    _check_equal(resumed, run, "state_dict does not restore all that learning depends on")
    again = Run(make, model, specs).learn(one, 1).learn(two, 2)
    _check_equal(again, run, "the same batches have led to other results a second time")
    noisy = Run(make, model, specs).learn(with_other_seams(one, specs), 1).learn(with_other_seams(two, specs), 2)
    _check_equal(noisy, run, "what stands on a seam has influence")
    for steps in (1, 2):  # slot 0 is a seam in every lane
        Run(make, model, specs).learn(_first(synthetic_fields(run.algorithm, model, specs, 3, all_seams=True), steps), 3)


class Run:
    """A copy of the model, the algorithm that trains it, and the statistics of each batch so far."""

    def __init__(self, make: Callable[[Model, Specs], Algorithm], model: Model, specs: Specs):
        self.make, self.specs = make, specs
        self.model = copy.deepcopy(model)
        self.algorithm = make(self.model, specs)
        self.statistics: list[dict[str, float]] = []
        self.batches: list[Batch] = []

    def weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]

    def learn(self, fields: Fields, iteration: int) -> Run:
        """Learn from a batch and check statistics, parameters, and that the batch is left as it was."""
        fields = {name: array.clone() for name, array in fields.items()}
        observation = {name: fields[name] for name in self.specs.observation}
        observe = observer(observation, fields["step_type"], self.model.frame_stack)
        batch = Batch(fields, 0.1 * iteration, generator(0, LEARNING, iteration), observe, nullcontext)
        copies = {name: array.clone() for name, array in fields.items()}
        statistics = self.algorithm.learn(batch)
        for name, array in fields.items():
            assert torch.equal(array, copies[name]), f"learn has changed the batch's {name}: it is archived meanwhile"
        num_steps = int(batch.is_step.sum())
        learned = statistics.get("learned")
        assert learned == num_steps, f'"learned" is {learned}, the batch has {num_steps} true steps'
        for name, value in statistics.items():  # some, such as a variance, are undefined for a single step
            assert math.isfinite(value) or num_steps < 2, f"statistic {name} is {value} after a batch of {num_steps} true steps"
        finite = all(torch.isfinite(weight).all() for weight in self.weights())
        assert finite, f"parameters are not finite after a batch of {num_steps} true steps"
        self.statistics.append(statistics)
        self.batches.append(batch)
        return self

    def resumed(self) -> Run:
        """A run that starts from this one's parameters, a saved and loaded state_dict, and the batches if it asks for them."""
        file = io.BytesIO()
        torch.save(self.algorithm.state_dict(), file)
        file.seek(0)
        run = Run(self.make, self.model, self.specs)
        try:
            state = torch.load(file, weights_only=True)
        except Exception as error:
            raise AssertionError(f"state_dict cannot be loaded with weights_only=True: {error}") from error
        run.algorithm.load_state_dict(state)
        if run.algorithm.replay_size:
            run.algorithm.refill(self.batches)
        run.statistics = list(self.statistics)
        return run


def synthetic_fields(algorithm: Algorithm, model: Model, specs: Specs, seed: int, all_seams: bool = False) -> Fields:
    """A batch of 4 lanes x 12 steps that `model` collected, with terminations, truncations and seams at either end.

    With `all_seams`, every lane starts on a seam.
    """
    random = np.random.default_rng(seed)
    layout = Layout(specs, 12, model.frame_stack - 1, model.core_size, algorithm.extras(specs))
    batch = Trajectory.allocate(layout, num_lanes=4)
    for name, spec in {**specs.observation, **specs.extras}.items():
        batch[name][...] = sample_observations(spec, batch[name].shape[:2], random).numpy()
    #          terminated, truncated, ends with the batch, ended before it
    for lane, (last, discount) in enumerate([(4, 0.0), (6, 1.0), (12, 0.0), (0, 1.0)]):
        last = 0 if all_seams else last
        batch["step_type"][lane] = StepType.MID
        batch["step_type"][lane, last : last + 2] = [StepType.LAST, StepType.FIRST][: 13 - last]
        batch["discount"][lane] = 1.0
        if last:
            batch["discount"][lane, last - 1] = discount
        batch["episode"][lane] = lane + 4 * (np.arange(13) > last)
    batch["seed"][...] = NO_SEED
    is_step = batch["step_type"][:, :-1] != StepType.LAST
    batch["reward"][...] = random.normal(size=(4, 12)) * is_step
    fields = {name: torch.from_numpy(array) for name, array in batch.items()}
    _act(fields, model, specs, random)
    return fields


@torch.no_grad()
def _act(fields: Fields, model: Model, specs: Specs, random: np.random.Generator) -> None:
    """Fill in what a policy records, in place."""
    core = model.initial(4)
    fields["core"].copy_(core)
    observe = observer({name: fields[name] for name in specs.observation}, fields["step_type"], model.frame_stack)
    for t in range(13):
        output, core = model(observe(torch.arange(4) * 13 + t), fields["step_type"][:, t], core)
        for name in ("value", "parameters"):
            if name in fields:
                fields[name][:, t] = getattr(output, name)
        if t < 12:
            action = model.distribution.sample(output.parameters, sample_noise(model.distribution, 4))
            fields["action"][:, t] = action
            fields["log_prob"][:, t] = model.distribution.log_prob(output.parameters, action)


def with_other_seams(fields: Fields, specs: Specs) -> Fields:
    """The same batch with other values where a lane was between episodes."""
    fields = {name: array.clone() for name, array in fields.items()}
    is_last = fields["step_type"] == StepType.LAST
    seam = is_last[:, :-1]
    fields["reward"][seam], fields["log_prob"][seam], fields["discount"][seam] = 3.0, -1.7, 0.0
    action = fields["action"]
    action[seam] = (specs.action.num_values - 1 - action[seam]) if specs.action.is_discrete else action[seam] + 1
    if "parameters" in fields:
        fields["parameters"][is_last] += 1.0
    if "value" in fields:  # of a terminal observation, and of one whose step is not in this batch
        terminal = is_last & (torch.nn.functional.pad(fields["discount"], (1, 0)) == 0)
        fields["value"][terminal] += 5.0
    return fields


def _first(fields: Fields, steps: int) -> Fields:
    """The first `steps` of 12 steps of the first lane."""
    per_step = {name for name, array in fields.items() if array.ndim > 1 and name != "core"}
    return {name: array[:1, : array.shape[1] - 12 + steps] if name in per_step else array[:1] for name, array in fields.items()}


def _check_equal(one: Run, two: Run, message: str) -> None:
    """Check that two runs have the same statistics and parameters. The tolerances allow another order of summation."""
    for said, expected in zip(one.statistics, two.statistics):
        for name in expected:
            close = math.isclose(said.get(name, math.nan), expected[name], rel_tol=1e-4, abs_tol=1e-6)
            assert close, f"{message}; statistic {name} is {said.get(name)} instead of {expected[name]}"
    for (name, weight), other in zip(one.model.named_parameters(), two.model.parameters()):
        assert torch.allclose(weight, other, rtol=1e-5, atol=1e-7), f"{message}; parameter {name} differs"
