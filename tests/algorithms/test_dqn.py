"""DQN: its update is the papers', it learns, it resumes with its buffer, and it refuses what cannot be right."""

import contextlib
import copy

import numpy as np
import pytest
import torch
from replaying import LAST, play

from mpirl.algorithms.base import Batch
from mpirl.algorithms.dqn import DQN
from mpirl.errors import UserError
from mpirl.models.mlp import MLP
from mpirl.models.q import QNetwork
from mpirl.specs import ArraySpec, Specs
from mpirl.testing import check_algorithm

torch.set_num_threads(1)
OBSERVATION = {"observation": ArraySpec((2,), "int32", low=0, high=9)}
SPECS = Specs(OBSERVATION, ArraySpec((), "int64", num_values=3), {"lives": ArraySpec((), "int32")})


def network(seed=0, frame_stack=1, dueling=False):
    torch.manual_seed(seed)
    return QNetwork(MLP(SPECS, hidden=[16], frame_stack=frame_stack), dueling)


def make(model, specs=SPECS, **settings):
    settings = dict(buffer_size=2000, learning_starts=1, minibatch_size=8, train_ratio=0.5, target_every=7) | settings
    return DQN(model, specs, **settings)


def as_batch(fields, seed=0, progress=0.0):
    return Batch(fields, progress, np.random.default_rng(seed), lambda index: {}, contextlib.nullcontext)


def learned(algorithm, batches):
    return [algorithm.learn(as_batch(fields, seed)) for seed, fields in enumerate(batches)]


@pytest.mark.parametrize("settings", [{}, dict(n_step=3, double=False, reward_clip=0.5), dict(life_loss=True)])
def test_dqn_honours_the_contract_of_algorithms(settings):
    for frame_stack, dueling in ((1, False), (3, True)):
        check_algorithm(lambda model, specs: make(model, specs, **settings), network(0, frame_stack, dueling), SPECS)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_gradient_of_a_minibatch_is_the_naive_one(double, n):
    fields = play(steps=20, iterations=1)[0]
    model = network()
    algorithm = make(model, double=double, n_step=n, gamma=0.9, learning_starts=1000)
    algorithm.target.load_state_dict(network(seed=1).state_dict())
    algorithm.learn(as_batch(fields))  # which takes it in
    drawn = algorithm.buffer.draw(16, np.random.default_rng(0))
    algorithm.loss(as_batch(fields), drawn)[0].mean().backward()
    gradients = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    model.zero_grad(set_to_none=True)
    naive_loss(model, algorithm.target, algorithm.buffer, drawn, double).backward()
    expected = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert len(gradients) == len(expected) > 0
    for one, other in zip(gradients, expected):
        torch.testing.assert_close(one, other)


def naive_loss(model, target, buffer, drawn, double):
    """Equation 4 of van Hasselt et al. (2016), or 3 without double, one transition at a time; Huber's loss."""
    losses = []
    q = lambda network, row: network(buffer.observe(np.array([row])), None, torch.zeros(1, 0))[0].parameters[0, :-1]
    for row, action, returns, factor, following in zip(*(getattr(drawn, name) for name in drawn.__dataclass_fields__)):
        chooser = model if double else target
        Y = returns + factor * q(target, following)[q(chooser, following).argmax()].detach()
        delta = Y - q(model, row)[action]
        losses.append(torch.where(delta.abs() < 1, 0.5 * delta**2, delta.abs() - 0.5))
    return torch.stack(losses).mean()


def test_minibatches_follow_the_true_steps_once_learning_starts():
    batches = play(num_lanes=2, steps=6, iterations=8, ends=0.3)
    steps = [int((fields["step_type"][:, :-1] != LAST).sum()) for fields in batches]
    algorithm = make(network(), train_ratio=0.3, learning_starts=25)
    statistics = learned(algorithm, batches)
    assert [row["learned"] for row in statistics] == steps
    first = next(i for i in range(8) if sum(steps[: i + 1]) >= 25)
    for i, row in enumerate(statistics):
        assert row["n_updates"] == int(0.3 * sum(steps[first : i + 1]) + 1e-9)
        assert ("loss" in row) == (i >= first)


def test_target_network_is_copied_every_so_many_minibatches():
    batches = play(num_lanes=2, steps=5, iterations=2, ends=0)
    algorithm = make(network(), train_ratio=0.5, target_every=5)
    algorithm.target.load_state_dict(network(seed=1).state_dict())
    before = [weight.clone() for weight in algorithm.model.parameters()]
    learned(algorithm, batches[:1])  # minibatches 0 .. 4: the copy is made before the first
    for weight, was, now in zip(algorithm.target.parameters(), before, algorithm.model.parameters()):
        assert torch.equal(weight, was)
    between = [weight.clone() for weight in algorithm.model.parameters()]
    learned(algorithm, batches[1:])
    for weight, was in zip(algorithm.target.parameters(), between):
        assert torch.equal(weight, was)


def test_epsilon_falls_with_progress_and_travels_with_the_weights():
    algorithm = make(network(), exploration_fraction=0.2, exploration_final=0.1)
    fields = play(iterations=1)[0]
    found = []
    for progress in (0.0, 0.1, 0.2, 0.9):
        statistics = algorithm.learn(as_batch(fields, progress=progress))
        found.append(algorithm.model.epsilon.item())
        assert statistics["exploration_rate"] == pytest.approx(found[-1])
    assert found == pytest.approx([1.0, 0.55, 0.1, 0.1])
    assert "epsilon" in dict(algorithm.model.named_buffers())  # FlatWeights broadcasts floating-point buffers


def test_rewards_are_clipped_and_lost_lives_end_the_future():
    fields = play(num_lanes=1, steps=6, iterations=1, ends=0)[0]
    fields["reward"][:] = torch.tensor([[3.0, -2.0, 0.5, 0.0, 9.0, 1.0]])
    fields["lives"] = torch.tensor([[3, 3, 2, 2, 2, 2, 2]], dtype=torch.int32)
    algorithm = make(network(), reward_clip=1.0, life_loss=True, gamma=0.9, n_step=2, learning_starts=1000)
    algorithm.learn(as_batch(fields))
    rows = algorithm.buffer.drawable()
    assert algorithm.buffer._returns[rows] == pytest.approx([1 - 0.9, -1, 0.5, 0.9, 1 + 0.9])
    assert algorithm.buffer._factor[rows] == pytest.approx([0, 0, 0.81, 0.81, 0.81])


def test_prioritised_draws_change_what_is_learned_and_follow_the_errors():
    batches = play(num_lanes=2, steps=10, iterations=6)
    plain, prioritised = make(network()), make(network(), priority_exponent=0.6)
    learned(plain, batches), learned(prioritised, batches)
    assert any(not torch.equal(one, two) for one, two in zip(plain.model.parameters(), prioritised.model.parameters()))
    priorities = prioritised.buffer._tree.priorities(prioritised.buffer.drawable())
    assert len(set(priorities.tolist())) > 10


@pytest.mark.parametrize("exponent", [0.0, 0.6])
def test_the_same_batches_lead_to_the_same_weights(exponent):
    batches = play(num_lanes=2, steps=10, iterations=4)
    runs = [make(network(), priority_exponent=exponent) for _ in range(2)]
    assert learned(runs[0], batches) == learned(runs[1], batches)
    for one, two in zip(runs[0].model.parameters(), runs[1].model.parameters()):
        assert torch.equal(one, two)


def test_a_resume_with_a_refilled_buffer_goes_on_bit_for_bit():
    batches = play(num_lanes=2, steps=10, iterations=12)
    whole = make(network(), buffer_size=150, n_step=2)
    learned(whole, batches[:9])
    resumed = make(network(seed=3), buffer_size=150, n_step=2)
    resumed.model.load_state_dict(whole.model.state_dict())
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    resumed.refill(as_batch(fields) for fields in batches[:9])
    assert resumed.n_updates == whole.n_updates
    assert learned(resumed, batches[9:]) == learned(whole, batches[9:])
    for one, two in zip(resumed.model.parameters(), whole.model.parameters()):
        assert torch.equal(one, two)


def test_without_a_refill_learning_rests_until_the_buffer_has_its_start_again():
    batches = play(num_lanes=2, steps=10, iterations=4, ends=0)
    whole = make(network(), learning_starts=35)
    learned(whole, batches[:2])
    resumed = make(network(), learning_starts=35)
    resumed.load_state_dict(whole.state_dict())
    assert [row["n_updates"] - whole.n_updates for row in learned(resumed, batches[2:])] == [0, 10]


def bandit(algorithm, iteration):
    """Steps of one-step episodes that the model plays epsilon-greedily: action 2 is worth 1 where the first number is 1."""
    random = np.random.default_rng(iteration)
    observation = torch.from_numpy(random.integers(2, size=(16, 3, 2)).astype(np.int32))
    output, _ = algorithm.model({"observation": observation[:, 0]}, None, torch.zeros(16, 0))
    noise = torch.from_numpy(random.random((16, 2), np.float32))
    action = algorithm.model.distribution.sample(output.parameters, noise)
    best = torch.where(observation[:, 0, 0] == 1, 2, 0)
    fields = {
        "observation": observation,
        "step_type": torch.tensor([0, 2, 0], dtype=torch.uint8).expand(16, 3),
        "episode": torch.arange(16)[:, None] + 16 * (2 * iteration + torch.tensor([0, 0, 1])),
        "collected": torch.full((16,), iteration + 1),
        "action": torch.stack([action, action], 1),
        "reward": torch.stack([(action == best).float(), torch.zeros(16)], 1),
        "discount": torch.tensor([0.0, 1.0]).expand(16, 2),
    }
    return fields, (algorithm.model.distribution.mode(output.parameters) == best).float().mean().item()


@pytest.mark.parametrize("settings", [{}, dict(priority_exponent=0.6), dict(dueling=True, n_step=2)])
def test_a_contextual_bandit_is_solved(settings):
    dueling = settings.pop("dueling", False)
    algorithm = make(network(dueling=dueling), learning_rate=5e-3, exploration_fraction=0.5, train_ratio=0.25, **settings)
    for iteration in range(40):
        fields, right = bandit(algorithm, iteration)
        algorithm.learn(as_batch(fields, iteration, progress=iteration / 40))
    assert right == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(train_ratio=0), "train_ratio=0: must be more than 0"),
        (dict(n_step=0), "n_step=0: must be at least 1"),
        (dict(exploration_final=1.5), "exploration_final=1.5: must be from 0 to 1"),
        (dict(learning_starts=2000), "learning_starts=2000 must be below algorithm.buffer_size=2000"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        make(network(), **settings)


def test_a_model_without_action_values_is_refused():
    with pytest.raises(UserError, match="MLP has not: wrap it"):
        make(MLP(SPECS))


def test_life_loss_needs_lives():
    with pytest.raises(UserError, match="declares the extra `lives`"):
        make(network(), Specs(OBSERVATION, SPECS.action), life_loss=True)


def test_divergence_is_reported():
    fields = play(iterations=1)[0]
    fields["reward"][:] = torch.inf
    with pytest.raises(FloatingPointError, match="loss"):
        make(network()).learn(as_batch(fields))
