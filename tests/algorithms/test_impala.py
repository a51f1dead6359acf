"""IMPALA: its update is the paper's, it learns, also from an older policy's batches, and it refuses what cannot be right."""

import math

import pytest
import torch
from test_ppo import CONTINUOUS, DISCRETE, LAST, N, T, network, random_batch, walk
from test_returns import slow_vtrace

from mpirl.algorithms.impala import IMPALA, PER_MINIBATCH
from mpirl.errors import UserError
from mpirl.specs import ArraySpec, Specs
from mpirl.testing import check_algorithm

torch.set_num_threads(1)


def whole(algorithm, batch):
    """The batch as one minibatch."""
    algorithm.minibatch_size = N * T
    (part,) = algorithm.minibatches(batch)
    return part


def naive_loss(model, batch, rho_bar, c_bar):
    """Section 4.2 of the paper, as means over true steps; unscaled advantages."""
    output, _ = model(batch.observe(torch.arange(N * (T + 1))), None, None)
    V, logits = output.value.view(N, T + 1), output.parameters.view(N, T + 1, -1)[:, :-1]
    pi, true = torch.distributions.Categorical(logits=logits), batch.is_step
    log_rho = (pi.log_prob(batch.fields["action"]) - batch.fields["log_prob"]).detach()
    columns = batch.fields["reward"], batch.fields["discount"], V.detach(), batch.fields["step_type"]
    v, A = slow_vtrace(log_rho, *columns, 0.9, 0.95, rho_bar, c_bar)
    policy_gradient = log_rho.exp().clamp(max=rho_bar) * A * pi.log_prob(batch.fields["action"])
    value_loss = (V[:, :-1] - v) ** 2
    return (-policy_gradient + 0.5 * value_loss - 0.01 * pi.entropy())[true].mean()


@pytest.mark.parametrize("clips", [(1.0, 1.0), (1.3, 0.8)])
def test_gradient_is_the_naive_one(clips):
    model, other = network(), network(seed=1)
    batch = random_batch(other)  # another model acted
    settings = dict(gamma=0.9, rho_clip=clips[0], c_clip=clips[1])
    algorithm = IMPALA(model, DISCRETE, **settings)
    losses = algorithm.loss(batch, whole(algorithm, batch))[0], naive_loss(model, batch, *clips)
    gradients = [torch.autograd.grad(loss, model.parameters()) for loss in losses]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("specs", [DISCRETE, CONTINUOUS])
@pytest.mark.parametrize("settings", [{}, dict(normalize_advantage=True, reward_clip=0.5)])
def test_impala_honours_the_contract_of_algorithms(specs, settings):
    check_algorithm(lambda model, specs: IMPALA(model, specs, minibatch_size=16, **settings), network(specs), specs)


def test_impala_needs_nothing_recorded_but_what_every_batch_has():
    assert IMPALA.extras(DISCRETE) == {}
    batch = random_batch(network())
    fields = {name: column for name, column in batch.fields.items() if name not in ("value", "lives")}
    batch.fields = fields
    assert IMPALA(network(), DISCRETE).learn(batch)["learned"] == N * (T - 1)


@pytest.mark.parametrize("size, counts", [(1, [1] * 4), (T, [1] * 4), (2 * T, [2, 2]), (3 * T, [2, 2]), (100 * T, [4])])
def test_minibatches_are_whole_lanes_in_equal_parts_and_hold_every_true_step_once(size, counts):
    batch = random_batch(network())
    parts = list(IMPALA(network(), DISCRETE, minibatch_size=size).minibatches(batch))
    assert [len(part.lane) for part in parts] == counts
    seen = torch.cat([part.lane[part.step // T] * T + part.step % T for part in parts])
    assert sorted(seen.tolist()) == batch.is_step.flatten().nonzero().squeeze(1).tolist()


def test_lanes_are_shuffled_by_the_batchs_randomness():
    order = lambda seed: [int(part.lane) for part in IMPALA(network(), DISCRETE, minibatch_size=1).minibatches(batch(seed))]
    batch = lambda seed: random_batch(network(), seed=seed)
    assert order(1) == order(1) and len({tuple(order(seed)) for seed in range(8)}) > 1


@pytest.mark.parametrize("specs", [DISCRETE, CONTINUOUS])
def test_statistics_have_the_known_names(specs):
    model = network(specs)
    statistics = IMPALA(model, specs).learn(random_batch(model, specs))
    expected = {"learned", "learning_rate", "n_updates", "explained_variance", *PER_MINIBATCH}
    assert set(statistics) == expected | ({"std"} if specs is CONTINUOUS else set())
    assert all(isinstance(number, (int, float)) for number in statistics.values())
    assert statistics["learned"] == N * (T - 1) and statistics["n_updates"] == 1


def test_statistics_tell_whether_another_policy_acted():
    far = network(seed=1)
    with torch.no_grad():
        far.heads.policy.weight.mul_(50)
    own, foreign = (IMPALA(network(), DISCRETE, minibatch_size=N * T).learn(random_batch(who)) for who in (network(), far))
    assert own["rho"] == pytest.approx(1, abs=1e-6) and abs(own["approx_kl"]) < 1e-6 and own["clip_fraction"] == 0
    assert foreign["approx_kl"] > 0.01 and foreign["rho"] < 0.97 and 0.1 < foreign["clip_fraction"] < 0.9


def test_annealing_follows_progress():
    model = network()
    batch = random_batch(model, progress=0.75)
    assert IMPALA(model, DISCRETE, learning_rate=0.4).learn(batch)["learning_rate"] == pytest.approx(0.1)
    assert IMPALA(model, DISCRETE, learning_rate=0.4, anneal_learning_rate=False).learn(batch)["learning_rate"] == 0.4


def test_batch_of_seams_alone_changes_nothing():
    model = network()
    algorithm, before = IMPALA(model, DISCRETE), [parameter.clone() for parameter in model.parameters()]
    statistics = algorithm.learn(random_batch(model, step_type=torch.full((N, T + 1), LAST, dtype=torch.uint8)))
    assert statistics["learned"] == 0 and statistics["n_updates"] == 0
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before))


def test_normalized_advantages_have_mean_zero_and_no_unit():
    model = network()
    policy_losses = []
    for unit in (1.0, 1000.0):
        batch = random_batch(model, reward=unit * (5 + torch.arange(N * T).view(N, T) / (N * T)))
        with torch.no_grad():
            model.heads.value.weight.zero_()
        algorithm = IMPALA(model, DISCRETE, vtrace_lambda=0.0, normalize_advantage=True)
        policy_losses.append(float(algorithm.loss(batch, whole(algorithm, batch))[1][0]))
    assert policy_losses[0] == pytest.approx(policy_losses[1], rel=1e-4) and abs(policy_losses[0]) < 0.1


def test_learns_to_walk_to_the_end_of_a_chain_also_from_the_play_of_older_weights():
    """Positions 0 .. 4; only the step that reaches 4 pays, so the value must carry the reward back."""
    for lag in (0, 2):
        assert (chain(lag, iterations=40) > 0.8).all()


def chain(lag, iterations):
    """The probability of going right at every position, after learning from play of weights `lag` iterations old."""
    specs = Specs({"observation": ArraySpec((), "int64", num_values=5)}, ArraySpec((), "int64", num_values=2))
    model, actor = network(specs), network(specs)
    algorithm = IMPALA(model, specs, learning_rate=1e-2, anneal_learning_rate=False, gamma=0.9, minibatch_size=64)
    draw, history = torch.Generator().manual_seed(0), []
    for iteration in range(iterations):
        history.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        actor.load_state_dict(history[max(0, iteration - lag)])
        algorithm.learn(walk(actor, draw, lanes=8, steps=32, seed=iteration))
    return model({"observation": torch.arange(4)}, None, None)[0].parameters.softmax(-1)[:, 1]


def test_infinite_loss_is_an_error_that_names_it():
    model = network()
    batch = random_batch(model, reward=torch.full((N, T), torch.inf))
    with pytest.raises(FloatingPointError, match="value_loss.*reward_clip"):
        IMPALA(model, DISCRETE).learn(batch)


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0},
        {"learning_rate": "1e-3"},
        {"minibatch_size": 0},
        {"gamma": 1.1},
        {"vtrace_lambda": math.nan},
        {"rho_clip": 0},
        {"c_clip": -1},
        {"max_grad_norm": 0},
        {"reward_clip": 0},
        {"value_coefficient": -1},
        {"entropy_coefficient": True},
    ],
)
def test_wrong_settings_are_named_with_their_value(settings):
    ((key, value),) = settings.items()
    with pytest.raises(UserError, match=f"algorithm.{key}={value!r}"):
        IMPALA(network(), DISCRETE, **settings)


def test_life_loss_needs_an_emulator_that_tells_lives():
    with pytest.raises(UserError, match="life_loss.*lives"):
        IMPALA(network(CONTINUOUS), CONTINUOUS, life_loss=True)


def test_recurrent_models_are_refused_by_name():
    model = network()
    model.core_size = 4
    with pytest.raises(UserError, match="IMPALA trains models without recurrent state, MLP has one"):
        IMPALA(model, DISCRETE)
