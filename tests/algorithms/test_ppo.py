"""PPO: its update is the paper's, it learns, it resumes bit for bit, and it refuses what cannot be right."""

import contextlib
import dataclasses
import io

import numpy as np
import pytest
import torch

from mpirl.algorithms.base import Batch
from mpirl.algorithms.fitting import minibatches
from mpirl.algorithms.ppo import PER_MINIBATCH, PPO
from mpirl.algorithms.returns import vtrace
from mpirl.errors import UserError
from mpirl.models.mlp import MLP
from mpirl.models.stacking import observer
from mpirl.specs import ArraySpec, Specs

torch.set_num_threads(1)
FIRST, MID, LAST = 0, 1, 2
N, T = 4, 16
OBSERVATION, LIVES = {"observation": ArraySpec((3,), "float32")}, {"lives": ArraySpec((), "int32")}
DISCRETE = Specs(OBSERVATION, ArraySpec((), "int64", num_values=3), LIVES)
CONTINUOUS = Specs(DISCRETE.observation, ArraySpec((2,), "float32"))


def network(specs=DISCRETE, seed=0):
    torch.manual_seed(seed)
    return MLP(specs, hidden=[16])


def random_batch(model, specs=DISCRETE, seed=0, progress=0.0, **changes):
    """Random lanes with one seam each, acted in by the model."""
    draw = torch.Generator().manual_seed(seed)
    step_type = torch.full((N, T + 1), MID, dtype=torch.uint8)
    step_type[:, 5], step_type[:, 6] = LAST, FIRST
    observation = torch.randn(N, T + 1, 3, generator=draw)
    with torch.no_grad():
        output, _ = model({"observation": observation.flatten(0, 1)}, step_type.flatten(), torch.zeros(N * (T + 1), 0))
        noise = torch.rand(N * (T + 1), model.distribution.noise_size, generator=draw)
        action = model.distribution.sample(output.parameters, noise)
        log_prob = model.distribution.log_prob(output.parameters, action)
    fields = {
        "step_type": step_type,
        "action": action.unflatten(0, (N, T + 1))[:, :-1].contiguous(),
        "log_prob": log_prob.view(N, T + 1)[:, :-1].contiguous(),
        "value": output.value.view(N, T + 1),
        "reward": torch.randn(N, T, generator=draw),
        "discount": torch.ones(N, T),
        "lives": torch.ones(N, T + 1, dtype=torch.int32),
    } | changes
    observe = observer({"observation": observation}, step_type, 1)
    return Batch(fields, progress, np.random.default_rng(seed), observe, contextlib.nullcontext)


def naive_loss(model, observation, step, clip=0.1):
    """Equation 9 of the paper on one minibatch, with advantages normalised and the value loss weighed by a half."""
    output, _ = model({"observation": observation}, torch.zeros(len(observation)), torch.zeros(len(observation), 0))
    pi = torch.distributions.Categorical(logits=output.parameters)
    A = (step["advantage"] - step["advantage"].mean()) / (step["advantage"].std() + 1e-8)
    r = torch.exp(pi.log_prob(step["action"]) - step["log_prob"])
    L_clip = torch.min(r * A, torch.clamp(r, 1 - clip, 1 + clip) * A).mean()
    L_vf = ((output.value - step["target"]) ** 2).mean()
    return -L_clip + 0.5 * L_vf - 0.01 * pi.entropy().mean()


def test_gradient_of_a_minibatch_is_the_naive_one():
    model, other = network(), network(seed=1)
    algorithm, batch = PPO(model, DISCRETE), random_batch(other)  # another model acted, so that ratios differ from 1
    part = algorithm.prepare(batch).take(torch.arange(0, 60, 2))
    columns = {name: getattr(part, name) for name in ("action", "log_prob", "advantage", "target")}
    losses = algorithm.loss(batch, part, 0.1)[0], naive_loss(model, batch.observe(part.position)["observation"], columns)
    gradients = [torch.autograd.grad(loss, model.parameters()) for loss in losses]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def test_only_true_steps_are_learned_and_their_columns_belong_together():
    model = network()
    batch = random_batch(model)
    steps = PPO(model, DISCRETE).prepare(batch)
    assert len(steps) == N * (T - 1)
    assert 5 not in set((steps.position % (T + 1)).tolist())
    torch.testing.assert_close(model(batch.observe(steps.position), None, None)[0].value, steps.value)
    lane, t = steps.position // (T + 1), steps.position % (T + 1)
    assert torch.equal(steps.action, batch.fields["action"][lane, t])


@pytest.mark.parametrize("specs", [DISCRETE, CONTINUOUS])
def test_statistics_have_the_known_names(specs):
    model = network(specs)
    statistics = PPO(model, specs, clip_value=0.2).learn(random_batch(model, specs))
    expected = {"learned", "learning_rate", "clip_range", "clip_range_vf", "n_updates", "explained_variance", *PER_MINIBATCH}
    assert set(statistics) == expected | ({"std"} if specs is CONTINUOUS else set())
    assert all(isinstance(number, (int, float)) for number in statistics.values())
    assert statistics["learned"] == N * (T - 1) and statistics["n_updates"] == 4


def test_first_minibatch_after_collection_has_ratio_one():
    model = network()
    statistics = PPO(model, DISCRETE, epochs=1).learn(random_batch(model))
    assert abs(statistics["approx_kl"]) < 1e-6 and statistics["clip_fraction"] == 0


def test_annealing_follows_progress():
    model = network()
    batch = random_batch(model, progress=0.75)
    statistics = PPO(model, DISCRETE, learning_rate=0.4, anneal_clip_range=True).learn(batch)
    assert statistics["learning_rate"] == pytest.approx(0.1) and statistics["clip_range"] == pytest.approx(0.025)
    assert PPO(model, DISCRETE, learning_rate=0.4, anneal_learning_rate=False).learn(batch)["learning_rate"] == 0.4


def test_target_kl_ends_the_update_early():
    model = network()
    settings = dict(learning_rate=0.05, minibatch_size=20)
    free, bound = (PPO(network(), DISCRETE, **settings, target_kl=kl).learn(random_batch(model)) for kl in (None, 0.001))
    assert bound["n_updates"] < free["n_updates"] == 4


def test_rewards_are_clipped_on_demand():
    model = network()
    batch = random_batch(model, reward=torch.full((N, T), 100.0), value=torch.zeros(N, T + 1))
    steps = PPO(model, DISCRETE, reward_clip=1.0, gae_lambda=0.0).prepare(batch)
    assert (steps.target == 1).all()
    assert (batch.fields["reward"] == 100).all(), "the batch keeps raw rewards"


def test_life_loss_counts_as_termination():
    model = network()
    lives = torch.ones(N, T + 1, dtype=torch.int32)
    lives[:, 10:] = 0
    batch = random_batch(model, reward=torch.zeros(N, T), value=torch.ones(N, T + 1), lives=lives)
    steps = PPO(model, DISCRETE, life_loss=True, gae_lambda=0.0).prepare(batch)
    at_loss = steps.position % (T + 1) == 9
    assert (steps.target[at_loss] == 0).all() and (steps.target[~at_loss] == 0.99).all()


def acted_in_by(model, other):
    """A batch that `other` collected, with two lost lives and raw rewards, for `model` to learn from."""
    lives = torch.ones(N, T + 1, dtype=torch.int32)
    lives[:2, 10:] = 0
    return random_batch(other, lives=lives, reward=3 * torch.randn(N, T))


def test_correction_of_a_batch_without_lag_is_gae_up_to_rounding():
    model = network()
    batch = acted_in_by(model, model)
    settings = dict(reward_clip=1.0, life_loss=True)
    one, two = (PPO(model, DISCRETE, **settings, correction=name).prepare(batch) for name in ("none", "vtrace"))
    for name in one.__dataclass_fields__:
        torch.testing.assert_close(getattr(one, name), getattr(two, name), atol=1e-5, rtol=1e-5)


def test_corrected_advantages_targets_and_ratios_are_the_present_policys():
    model, other = network(), network(seed=1)
    batch = acted_in_by(model, other)
    steps = PPO(model, DISCRETE, correction="vtrace").prepare(batch)
    lane, t = steps.position // (T + 1), steps.position % (T + 1)
    output, _ = model({"observation": batch.observe(torch.arange(N * (T + 1)))["observation"]}, None, None)
    value = output.value.detach().view(N, T + 1)
    logits = output.parameters.detach().view(N, T + 1, -1)[:, :-1]
    log_rho = torch.distributions.Categorical(logits=logits).log_prob(batch.fields["action"]) - batch.fields["log_prob"]
    discount, step_type = batch.fields["discount"], batch.fields["step_type"]
    traced = vtrace(log_rho, batch.fields["reward"], discount, value, step_type, 0.99, 0.95)
    for got, expected in ((steps.value, value), (steps.target, traced.target), (steps.advantage, traced.advantage)):
        torch.testing.assert_close(got, expected[lane, t])
    torch.testing.assert_close(steps.log_prob, (batch.fields["log_prob"] + log_rho.detach())[lane, t])
    torch.testing.assert_close(steps.weight, log_rho.exp().clamp(max=1)[lane, t])
    assert not torch.allclose(steps.target, PPO(model, DISCRETE).prepare(batch).target, atol=1e-2)


def test_an_update_may_move_as_far_from_the_present_policy_as_without_lag():
    """Of a policy that has moved beyond the clip range since the batch was collected, nothing is clipped before it moves."""
    model, other = network(), network(seed=1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(10)
    batch = acted_in_by(model, other)
    clipped = {}
    for correction in ("none", "vtrace"):
        algorithm = PPO(model, DISCRETE, correction=correction, clip_range=0.05)
        steps = algorithm.prepare(batch)
        _, statistics, _ = algorithm.loss(batch, steps, 0.05)
        clipped[correction] = statistics[PER_MINIBATCH.index("clip_fraction")].item()
    assert clipped["vtrace"] == 0 < 0.3 < clipped["none"]


def test_steps_weigh_by_how_likely_they_still_are():
    model = network()
    batch = random_batch(model)
    algorithm = PPO(model, DISCRETE, normalize_advantage=False, value_coefficient=0.0, entropy_coefficient=0.0)
    steps = algorithm.prepare(batch)
    assert (steps.weight == 1).all()
    halved = dataclasses.replace(steps, weight=torch.full_like(steps.weight, 0.5))
    (whole, *_), (half, *_) = (algorithm.loss(batch, part, 0.1) for part in (steps, halved))
    torch.testing.assert_close(half, whole / 2)


@pytest.mark.parametrize(("lag", "as_with"), [(0, "none"), (1, "vtrace")])
def test_by_default_batches_of_older_weights_are_corrected(lag, as_with):
    model, other = network(), network(seed=1)
    batch = dataclasses.replace(acted_in_by(model, other), lag=lag)
    steps, expected = PPO(model, DISCRETE).prepare(batch), PPO(model, DISCRETE, correction=as_with).prepare(batch)
    for name in steps.__dataclass_fields__:
        assert torch.equal(getattr(steps, name), getattr(expected, name)), name


def test_minibatches_cover_every_step_once_and_none_is_single():
    for count in (1, 2, 9, 10, 11, 12, 20, 21, 25):
        parts = list(minibatches(np.random.default_rng(0), count, 10))
        assert sorted(np.concatenate(parts)) == list(range(count))
        assert all(len(part) > 1 for part in parts) or count == 1


def test_batch_of_seams_alone_changes_nothing():
    model = network()
    algorithm, before = PPO(model, DISCRETE), [parameter.clone() for parameter in model.parameters()]
    batch = random_batch(model, step_type=torch.full((N, T + 1), LAST, dtype=torch.uint8))
    assert algorithm.learn(batch)["learned"] == 0
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before))


def test_resumed_run_continues_bit_for_bit():
    def learn(algorithm, seeds):
        for seed in seeds:
            algorithm.learn(random_batch(algorithm.model, seed=seed, progress=seed / 10))
        return algorithm

    whole = learn(PPO(network(), DISCRETE), range(4))
    half = learn(PPO(network(), DISCRETE), range(2))
    saved = io.BytesIO()
    torch.save({"model": half.model.state_dict(), "algorithm": half.state_dict()}, saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    resumed = PPO(network(seed=9), DISCRETE)
    resumed.model.load_state_dict(state["model"])
    resumed.load_state_dict(state["algorithm"])
    learn(resumed, range(2, 4))
    assert resumed.n_updates == whole.n_updates
    assert all(torch.equal(*pair) for pair in zip(whole.model.parameters(), resumed.model.parameters()))


def test_learns_to_choose_the_largest_input():
    """A contextual bandit: the reward is 1 for the index of the largest of three numbers."""
    model = network()
    algorithm = PPO(model, DISCRETE, learning_rate=3e-3, minibatch_size=30, gamma=0.0)
    for seed in range(25):
        batch = random_batch(model, seed=seed)
        right = batch.observe(torch.arange(N * (T + 1)))["observation"].view(N, T + 1, 3)[:, :-1].argmax(-1)
        batch.fields["reward"] = (batch.fields["action"] == right).float()
        algorithm.learn(batch)
    observation = torch.randn(500, 3)
    choice = model.distribution.mode(model({"observation": observation}, None, None)[0].parameters)
    assert (choice == observation.argmax(-1)).float().mean() > 0.9


def test_learns_to_walk_to_the_end_of_a_chain():
    """Positions 0 .. 4; only the step that reaches 4 pays, so the value must carry the reward back."""
    specs = Specs({"observation": ArraySpec((), "int64", num_values=5)}, ArraySpec((), "int64", num_values=2))
    model = network(specs)
    algorithm = PPO(model, specs, learning_rate=5e-3, anneal_learning_rate=False, gamma=0.9)
    draw = torch.Generator().manual_seed(0)
    for iteration in range(30):
        batch = walk(model, draw, lanes=8, steps=32, seed=iteration)
        algorithm.learn(batch)
    probability = model({"observation": torch.arange(4)}, None, None)[0].parameters.softmax(-1)[:, 1]
    assert (probability > 0.8).all()


def walk(model, draw, lanes, steps, seed):
    """Steps in the chain: action 1 goes right, 0 left; position 4 ends the episode with reward 1."""
    observation, step_type = torch.zeros(lanes, steps + 1, dtype=torch.int64), torch.zeros(lanes, steps + 1, dtype=torch.uint8)
    fields = {name: torch.zeros(lanes, steps) for name in ("log_prob", "reward")} | {"discount": torch.ones(lanes, steps)}
    fields |= {"action": torch.zeros(lanes, steps, dtype=torch.int64), "value": torch.zeros(lanes, steps + 1)}
    for t in range(steps + 1):
        with torch.no_grad():
            output, _ = model({"observation": observation[:, t]}, step_type[:, t], torch.zeros(lanes, 0))
        fields["value"][:, t] = output.value
        if t == steps:
            break
        action = model.distribution.sample(output.parameters, torch.rand(lanes, 1, generator=draw))
        fields["action"][:, t] = action
        fields["log_prob"][:, t] = model.distribution.log_prob(output.parameters, action)
        over = step_type[:, t] == LAST
        place = torch.where(over, 0, (observation[:, t] + 2 * action - 1).clamp(0, 4))
        arrived = (place == 4) & ~over
        observation[:, t + 1] = place
        step_type[:, t + 1] = torch.where(over, FIRST, torch.where(arrived, LAST, MID))
        fields["reward"][:, t], fields["discount"][:, t] = arrived.float(), (~arrived).float()
    observe = observer({"observation": observation}, step_type, 1)
    return Batch(fields | {"step_type": step_type}, 0.0, np.random.default_rng(seed), observe, contextlib.nullcontext)


def test_infinite_loss_is_an_error_that_names_it():
    model = network()
    batch = random_batch(model, reward=torch.full((N, T), torch.inf))
    with pytest.raises(FloatingPointError, match="value_loss.*reward_clip"):
        PPO(model, DISCRETE).learn(batch)


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0},
        {"learning_rate": "1e-3"},
        {"epochs": 1.5},
        {"minibatch_size": 1},
        {"gamma": 1.1},
        {"gae_lambda": float("nan")},
        {"clip_range": -0.1},
        {"clip_value": 0},
        {"target_kl": -1},
        {"reward_clip": 0},
        {"entropy_coefficient": -1},
    ],
)
def test_wrong_settings_are_named_with_their_value(settings):
    ((key, value),) = settings.items()
    with pytest.raises(UserError, match=f"algorithm.{key}={value!r}"):
        PPO(network(), DISCRETE, **settings)


def test_unknown_correction_is_named_with_the_choices():
    with pytest.raises(UserError, match="algorithm.correction='gae': choose auto, none or vtrace"):
        PPO(network(), DISCRETE, correction="gae")


def test_life_loss_needs_an_emulator_that_tells_lives():
    with pytest.raises(UserError, match="life_loss.*lives"):
        PPO(network(CONTINUOUS), CONTINUOUS, life_loss=True)
