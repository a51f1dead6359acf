"""AWR: its weights, what it prefers, DigiRL's two levels, and all against slow references."""

import contextlib
import io
import math

import numpy as np
import pytest
import torch

from mpirl.algorithms.awr import AWR
from mpirl.algorithms.base import Batch
from mpirl.algorithms.bc import BC
from mpirl.algorithms.returns import advantage_weights, gae, step_advantage
from mpirl.algorithms.two_level import TaskFilter
from mpirl.errors import UserError
from mpirl.models.mlp import MLP
from mpirl.models.stacking import observer
from mpirl.specs import ArraySpec, Specs
from mpirl.testing import check_algorithm

torch.set_num_threads(1)
SPECS = Specs({"observation": ArraySpec((), "int64", num_values=3)}, ArraySpec((), "int64", num_values=2))
CONTINUOUS = Specs({"observation": ArraySpec((3,), "float32")}, ArraySpec((2,), "float32"))
FIRST, MID, LAST = 0, 1, 2


def network(specs=SPECS, seed=0):
    torch.manual_seed(seed)
    return MLP(specs, hidden=(16,))


def bandit(seed, share=0.3, lanes=8, pulls=16, finished=True):
    """Episodes of one pull at an arm of two: arm 1 pays 1, arm 0 nothing. The recorded player chose arm 1 with this share.

    Slots are step, seam, step, ...; rows of the episode table count the pulls of the batch.
    """
    draw = torch.Generator().manual_seed(seed)
    steps = 2 * pulls
    step_type = torch.full((lanes, steps + 1), FIRST, dtype=torch.uint8)
    step_type[:, 1::2] = LAST
    action = (torch.rand(lanes, steps, generator=draw) < share).long()
    reward = action.float()
    reward[:, 1::2] = 0
    row = torch.arange(lanes * (pulls + 1)).view(lanes, -1).repeat_interleave(2, 1)[:, : steps + 1]
    to_go = torch.nn.functional.pad(reward, (0, 1))
    fields = {"step_type": step_type, "action": action, "reward": reward, "discount": torch.zeros(lanes, steps), "row": row}
    fields |= {"return_to_go": to_go, "steps_to_go": (step_type != LAST).int()}
    observe = observer({"observation": torch.zeros(lanes, steps + 1, dtype=torch.int64)}, step_type, 1)
    return Batch(fields, 0.0, np.random.default_rng(seed), observe, contextlib.nullcontext)


def probability_of_the_better_arm(algorithm, batches=60):
    if hasattr(algorithm, "tasks") and algorithm.tasks:
        algorithm.choose({"task": np.full(8 * 17, ""), "return": np.zeros(8 * 17)})
    for seed in range(batches):
        algorithm.learn(bandit(seed))
    output, _ = algorithm.model({"observation": torch.zeros(1, dtype=torch.int64)}, None, torch.zeros(1, 0))
    return output.parameters.softmax(-1)[0, 1].item()


SETTINGS = dict(learning_rate=1e-2, anneal_learning_rate=False, minibatch_size=64)


def test_of_two_arms_awr_prefers_the_better_and_bc_copies_the_mixture():
    cloned = probability_of_the_better_arm(BC(network(), SPECS, **SETTINGS))
    preferred = probability_of_the_better_arm(AWR(network(), SPECS, beta=0.5, **SETTINGS))
    assert cloned == pytest.approx(0.3, abs=0.07)
    assert preferred > 0.8


def test_a_lower_temperature_prefers_more():
    warm, cold = (probability_of_the_better_arm(AWR(network(), SPECS, beta=beta, **SETTINGS), 30) for beta in (5.0, 0.7))
    assert 0.25 < warm < cold


def test_two_levels_keep_only_what_was_better_than_expected():
    assert probability_of_the_better_arm(AWR(network(), SPECS, two_level=True, task_top=0.3, **SETTINGS)) > 0.9


@pytest.mark.parametrize("specs", [SPECS, CONTINUOUS])
def test_honours_the_contract_of_online_algorithms_too(specs):
    check_algorithm(lambda model, specs: AWR(model, specs, minibatch_size=16), network(specs), specs)


def test_weights_are_exponential_and_clipped():
    advantage = torch.tensor([-1.0, 0.0, 0.5, 3.0, 1000.0])
    expected = [min(math.exp(a / 0.5), 20.0) for a in (-1, 0, 0.5, 3, 100)]
    assert advantage_weights(advantage, 0.5, 20.0).tolist() == pytest.approx(expected)


def test_value_targets_are_td_lambda_returns_of_the_present_value():
    model, batch = network(), bandit(0)
    value, target, advantage = AWR(model, SPECS, gamma=0.9, td_lambda=0.8).advantages(batch)
    expected = gae(batch.fields["reward"], batch.fields["discount"], value, batch.fields["step_type"], 0.9, 0.8)
    torch.testing.assert_close(advantage, expected)
    torch.testing.assert_close(target, expected + value[:, :-1])
    seen = model(batch.observe(torch.arange(value.numel())), None, torch.zeros(value.numel(), 0))[0].value
    torch.testing.assert_close(value.flatten(), seen)


def test_the_loss_is_the_papers():
    model, batch = network(), bandit(0)
    algorithm = AWR(model, SPECS, beta=0.3, normalize_advantage=False)
    steps, _ = algorithm.prepare(batch)
    value, target, advantage = algorithm.advantages(batch)
    output = model(batch.observe(steps["position"]), None, torch.zeros(len(steps["position"]), 0))[0]
    log_pi = output.parameters.log_softmax(-1).gather(1, steps["action"][:, None])[:, 0]
    A = advantage[batch.is_step]
    naive = -(torch.exp(A / 0.3).clamp(max=20) * log_pi).mean() + 0.5 * ((output.value - target[batch.is_step]) ** 2).mean()
    torch.testing.assert_close(algorithm.loss(batch, steps)[0], naive)


def slow_step_advantage(r, d, V, G, left, gamma, lam):
    """The paper's estimator step by step, with the baseline in its Monte Carlo term."""
    A = torch.zeros_like(r)
    for n in range(r.shape[0]):
        for h in range(r.shape[1]):
            share = lam ** max(int(left[n, h]) - 1, 0)
            A[n, h] = share * (G[n, h] - V[n, h]) + (1 - share) * (V[n, h + 1] * gamma * d[n, h] + r[n, h] - V[n, h])
    return A


def test_step_advantages_agree_with_the_papers_formula():
    draw = torch.Generator().manual_seed(0)
    r, V, G = (torch.randn(3, size, generator=draw) for size in (9, 10, 10))
    d, left = (torch.rand(3, 9, generator=draw) < 0.8).float(), torch.randint(1, 6, (3, 10), generator=draw)
    arguments = (r, d, V, G, left, 0.9, 0.5)
    torch.testing.assert_close(step_advantage(*arguments), slow_step_advantage(*arguments))


def test_the_last_step_is_judged_by_what_came_and_an_early_one_by_the_value():
    r, d, V = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.2, 0.5, 0.0]])
    G, left = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[2, 1, 0]], dtype=torch.int32)
    assert step_advantage(r, d, V, G, left, 1.0, 0.0).tolist()[0] == pytest.approx([0.3, 0.5])


def test_a_tasks_episodes_compete_with_each_other_also_where_only_the_archive_names_it():
    tasks = TaskFilter(top=0.5)
    assert tasks.begin({"task": np.array(["easy"] * 4 + ["hard"] * 4)}).all()
    assert not tasks.chosen().any(), "nothing has been seen"
    tasks.update(np.arange(8), np.array([5.0, 6, 7, 8, -8, -7, -6, -5]))
    assert np.flatnonzero(tasks.chosen()).tolist() == [2, 3, 6, 7]


def test_an_episode_that_was_not_seen_is_not_chosen():
    tasks = TaskFilter(top=1.0)
    tasks.begin({"task": np.full(3, "")})
    tasks.update(np.array([0, 2]), np.array([1.0, -1.0]))
    assert tasks.chosen().tolist() == [True, False, True]


def test_held_out_episodes_do_not_enter_the_task_level():
    algorithm = AWR(network(), SPECS, two_level=True)
    algorithm.choose({"task": np.full(8 * 17, ""), "return": np.zeros(8 * 17)})
    batch = bandit(0)
    batch.chosen = torch.zeros_like(batch.is_step)
    batch.chosen[0] = True
    assert set(algorithm.validate(batch)) == {"negative_log_likelihood", "accuracy", "value_loss"}
    assert np.isnan(algorithm.tasks.advantage).all()
    algorithm.learn(batch)
    assert np.flatnonzero(~np.isnan(algorithm.tasks.advantage)).tolist() == list(range(16)), "those of lane 0"


def test_values_of_unfinished_episodes_do_not_spoil_the_others():
    batch = bandit(0)
    batch.fields["return_to_go"][1:], batch.fields["row"][1:] = torch.nan, -1
    batch.chosen = torch.zeros_like(batch.is_step)
    batch.chosen[0] = True
    algorithm = AWR(network(), SPECS, two_level=True)
    algorithm.choose({"task": np.full(17, ""), "return": np.zeros(17)})
    assert all(math.isfinite(number) for number in algorithm.learn(batch).values())


def test_two_levels_need_an_archive():
    batch = bandit(0)
    for name in ("row", "return_to_go", "steps_to_go"):
        del batch.fields[name]
    with pytest.raises(UserError, match="two_level.*program=offline"):
        AWR(network(), SPECS, two_level=True).learn(batch)


def test_a_resumed_run_continues_bit_for_bit():
    def make(seed=0):
        algorithm = AWR(network(seed=seed), SPECS, two_level=True, **SETTINGS)
        algorithm.choose({"task": np.full(8 * 17, ""), "return": np.zeros(8 * 17)})
        return algorithm

    whole, half, resumed = make(), make(), make(seed=9)
    for seed in range(4):
        whole.learn(bandit(seed))
        if seed < 2:
            half.learn(bandit(seed))
    saved = io.BytesIO()
    torch.save(half.state_dict(), saved)
    saved.seek(0)
    resumed.model.load_state_dict(half.model.state_dict())
    resumed.load_state_dict(torch.load(saved, weights_only=True))
    for seed in range(2, 4):
        resumed.learn(bandit(seed))
    assert all(torch.equal(*pair) for pair in zip(whole.model.parameters(), resumed.model.parameters()))


@pytest.mark.parametrize("settings", [{"beta": 0}, {"weight_clip": 0.5}, {"td_lambda": 2}, {"task_top": 0}, {"reward_clip": 0}])
def test_wrong_settings_are_named_with_their_value(settings):
    ((key, value),) = settings.items()
    with pytest.raises(UserError, match=f"algorithm.{key}={value!r}"):
        AWR(network(), SPECS, **settings)


def test_an_infinite_loss_is_an_error_that_names_it():
    batch = bandit(0)
    batch.fields["reward"][:] = torch.inf
    with pytest.raises(FloatingPointError, match="reward_clip"):
        AWR(network(), SPECS).learn(batch)
