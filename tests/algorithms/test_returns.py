"""Advantages against a slow reference in the paper's notation, and by what must not change them."""

import pytest
import torch

from mpirl.algorithms.returns import as_learned, explained_variance, gae, life_loss_discount, vtrace

torch.set_num_threads(1)
FIRST, MID, LAST = 0, 1, 2


def window(lanes=6, steps=40, seed=0):
    """Random lanes with terminations, truncations and seams: reward, discount, value, step_type."""
    draw = torch.Generator().manual_seed(seed)
    step_type = torch.full((lanes, steps + 1), MID, dtype=torch.uint8)
    discount = torch.ones(lanes, steps)
    reward, value = torch.randn(lanes, steps, generator=draw), torch.randn(lanes, steps + 1, generator=draw)
    for n in range(lanes):
        step_type[n, 0] = (FIRST, MID, LAST)[n % 3]
        for t in range(steps):
            if step_type[n, t] == LAST:
                step_type[n, t + 1], reward[n, t] = FIRST, 0
            elif torch.rand((), generator=draw) < 0.2:
                step_type[n, t + 1] = LAST
                discount[n, t] = float(torch.rand((), generator=draw) < 0.5)
    return reward, discount, value, step_type


def slow_gae(r, d, V, step_type, gamma, lam):
    """A_t = sum_l (gamma lambda)^l delta_{t+l}, delta_t = r_t + gamma V(s_{t+1}) - V(s_t), to the episode's end."""
    A = torch.zeros_like(r)
    for n in range(r.shape[0]):
        for t in range(r.shape[1]):
            if step_type[n, t] == LAST:
                continue
            for l in range(r.shape[1] - t):
                s = t + l
                delta = r[n, s] + gamma * d[n, s] * V[n, s + 1] - V[n, s]
                A[n, t] += (gamma * lam) ** l * delta
                if d[n, s] == 0 or step_type[n, s + 1] == LAST:
                    break
    return A


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_gae_agrees_with_the_papers_sum(lam):
    torch.testing.assert_close(gae(*window(), 0.9, lam), slow_gae(*window(), 0.9, lam), atol=1e-5, rtol=1e-5)


def test_batch_equals_each_lane_alone():
    together = gae(*window(), 0.99, 0.95)
    for n in range(len(together)):
        alone = gae(*(array[n : n + 1] for array in window()), 0.99, 0.95)
        assert torch.equal(alone[0], together[n])


def test_seam_equals_separate_episodes():
    reward, discount, value = torch.randn(1, 9), torch.ones(1, 9), torch.randn(1, 10)
    step_type = torch.full((1, 10), MID, dtype=torch.uint8)
    step_type[0, 4], step_type[0, 5], reward[0, 4] = LAST, FIRST, 0
    joined = gae(reward, discount, value, step_type, 0.9, 0.8)
    first = gae(reward[:, :4], discount[:, :4], value[:, :5], step_type[:, :5], 0.9, 0.8)
    second = gae(reward[:, 5:], discount[:, 5:], value[:, 5:], step_type[:, 5:], 0.9, 0.8)
    assert torch.equal(joined, torch.cat([first, torch.zeros(1, 1), second], 1))


def test_lambda_one_is_monte_carlo():
    reward, value, step_type = torch.randn(1, 5), torch.randn(1, 6), torch.tensor([[0, 1, 1, 1, 1, 2]], dtype=torch.uint8)
    discount = torch.tensor([[1.0, 1, 1, 1, 0]])
    returns = [sum(0.9 ** (s - t) * reward[0, s] for s in range(t, 5)) for t in range(5)]
    torch.testing.assert_close(gae(reward, discount, value, step_type, 0.9, 1.0)[0], torch.stack(returns) - value[0, :-1])


def advantage_of_last_step(discount, last_value, step_type=LAST):
    types = torch.tensor([[FIRST, step_type]], dtype=torch.uint8)
    return gae(torch.ones(1, 1), torch.tensor([[discount]]), torch.tensor([[0.0, last_value]]), types, 0.5, 0.95).item()


def test_truncated_episode_bootstraps_last_observation():
    assert advantage_of_last_step(1.0, 10.0) == 1 + 0.5 * 10


def test_terminated_episode_does_not_bootstrap():
    assert advantage_of_last_step(0.0, 10.0) == 1


def test_end_of_the_window_bootstraps():
    assert advantage_of_last_step(1.0, 10.0, MID) == 1 + 0.5 * 10


def test_life_loss_zeroes_the_discount_where_lives_drop_within_an_episode():
    lives = torch.tensor([[3, 3, 2, 2, 1, 1]])
    step_type = torch.tensor([[MID, MID, MID, LAST, FIRST, MID]], dtype=torch.uint8)
    assert life_loss_discount(torch.ones(1, 5), lives, step_type).tolist() == [[1, 0, 1, 1, 1]]


def test_explained_variance_is_one_when_exact_zero_for_the_mean_and_nan_without_variance():
    target = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(target, target) == 1
    assert explained_variance(torch.full((3,), 2.0), target) == 0
    assert explained_variance(target, torch.ones(3)).isnan()


def ratios(scale, lanes=6, steps=40):
    return scale * torch.randn(lanes, steps, generator=torch.Generator().manual_seed(1))


def slow_vtrace(log_rho, r, d, V, step_type, gamma, lam, rho_bar, c_bar):
    """v_s = V(x_s) + sum_t gamma^(t-s) (prod_{i=s}^{t-1} c_i) rho_t delta_t, c_i = lam min(c_bar, pi/mu), to the episode's end.

    The advantage is r_s + gamma (lam v_{s+1} + (1 - lam) V(x_{s+1})) - V(x_s).
    """
    rho, c = log_rho.exp().clamp(max=rho_bar), lam * log_rho.exp().clamp(max=c_bar)
    v, A = V.clone(), torch.zeros_like(r)
    for n in range(r.shape[0]):
        for s in range(r.shape[1]):
            weight = 1.0
            for t in range(s, r.shape[1] if step_type[n, s] != LAST else s):
                v[n, s] += weight * rho[n, t] * (r[n, t] + gamma * d[n, t] * V[n, t + 1] - V[n, t])
                weight *= gamma * c[n, t]
                if d[n, t] == 0 or step_type[n, t + 1] == LAST:
                    break
    for n in range(r.shape[0]):
        for s in range(r.shape[1]):
            if step_type[n, s] != LAST:
                A[n, s] = r[n, s] + gamma * d[n, s] * (lam * v[n, s + 1] + (1 - lam) * V[n, s + 1]) - V[n, s]
    return v[:, :-1], A


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("clips", [(1.0, 1.0), (2.0, 0.7), (float("inf"), 1.5)])
def test_vtrace_agrees_with_the_papers_sum(lam, clips):
    log_rho = ratios(0.5)
    traced = vtrace(log_rho, *window(), 0.9, lam, *clips)
    v, A = slow_vtrace(log_rho, *window(), 0.9, lam, *clips)
    torch.testing.assert_close(traced.target, v, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(traced.advantage, A, atol=1e-4, rtol=1e-4)
    true_step = window()[3][:, :-1] != LAST
    assert torch.equal(traced.rho[true_step], log_rho.exp().clamp(max=clips[0])[true_step])


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_vtrace_on_policy_is_gae(lam, seed):
    reward, discount, value, step_type = window(seed=seed)
    traced = vtrace(torch.zeros_like(reward), reward, discount, value, step_type, 0.9, lam)
    advantage = gae(reward, discount, value, step_type, 0.9, lam)
    torch.testing.assert_close(traced.advantage, advantage, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(traced.target, value[:, :-1] + advantage, atol=1e-5, rtol=1e-5)


def test_vtrace_values_a_step_that_pi_never_takes_as_before():
    """rho = 0: the step says nothing of pi."""
    reward, discount, value, step_type = window()
    traced = vtrace(torch.full_like(reward, -torch.inf), reward, discount, value, step_type, 0.9, 1.0)
    assert torch.equal(traced.target, value[:, :-1]) and not traced.rho[step_type[:, :-1] != LAST].any()


def test_vtrace_cares_for_nothing_on_a_seam():
    reward, discount, value, step_type = window()
    seam = step_type[:, :-1] == LAST
    log_rho = ratios(0.5)
    noise = reward.masked_fill(seam, 7.0), discount.masked_fill(seam, 0.0)
    one = vtrace(log_rho, reward, discount, value, step_type, 0.9)
    two = vtrace(log_rho.masked_fill(seam, torch.nan), *noise, value, step_type, 0.9)
    assert all(torch.equal(*pair) for pair in zip(one, two))
    assert not one.advantage[seam].any() and torch.equal(one.target[seam], value[:, :-1][seam])


def test_vtrace_of_a_batch_is_that_of_each_lane_alone():
    together = vtrace(ratios(0.5), *window(), 0.99, 0.95)
    for n in range(6):
        alone = vtrace(*(array[n : n + 1] for array in (ratios(0.5), *window())), 0.99, 0.95)
        assert all(torch.equal(one[0], many[n]) for one, many in zip(alone, together))


def target_of_last_step(discount, last_value, step_type=LAST):
    types = torch.tensor([[FIRST, step_type]], dtype=torch.uint8)
    value = torch.tensor([[0.0, last_value]])
    return vtrace(torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([[discount]]), value, types, 0.5).target.item()


def test_vtrace_bootstraps_truncated_episodes_and_the_windows_end_but_not_terminated_ones():
    assert target_of_last_step(1.0, 10.0) == target_of_last_step(1.0, 10.0, MID) == 1 + 0.5 * 10
    assert target_of_last_step(0.0, 10.0) == 1


def test_algorithms_see_clipped_rewards_and_lost_lives_while_the_batch_keeps_its_own():
    fields = {"reward": torch.tensor([[5.0, -3.0]]), "discount": torch.ones(1, 2), "lives": torch.tensor([[2, 2, 1]])}
    fields["step_type"] = torch.tensor([[FIRST, MID, MID]], dtype=torch.uint8)
    assert [column.tolist() for column in as_learned(fields, 1.0, True)] == [[[1, -1]], [[1, 0]]]
    assert [column.tolist() for column in as_learned(fields, None, False)] == [[[5, -3]], [[1, 1]]]
    assert fields["reward"].tolist() == [[5, -3]] and fields["discount"].tolist() == [[1, 1]]
