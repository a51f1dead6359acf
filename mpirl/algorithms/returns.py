"""Returns and advantages: pure functions of a batch's arrays, lanes x steps.

Slot t with step_type[:, t] == LAST is a seam: nothing was decided, and nothing flows across it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mpirl.specs import StepType


def gae(reward: Tensor, discount: Tensor, value: Tensor, step_type: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates [N, T] (Schulman et al. 2016, equation 16); 0 at seams.

    reward, discount: [N, T]; a discount of 0 is termination, while truncation bootstraps from its last observation.
    value: [N, T+1], of which value[:, T] bootstraps the window's end. step_type: uint8 [N, T+1].
    """
    true_step = step_type[:, :-1] != StepType.LAST
    delta = (reward + gamma * discount * value[:, 1:] - value[:, :-1]) * true_step
    return decayed_sums(delta, gamma * lam * discount * true_step)


class VTrace(NamedTuple):
    """[N, T] each. target: what the value learns. advantage: of the action, unweighted. rho: the importance weight, clipped.

    The policy gradient is that of rho * advantage * log pi.
    """

    target: Tensor
    advantage: Tensor
    rho: Tensor


def vtrace(
    log_rho: Tensor,
    reward: Tensor,
    discount: Tensor,
    value: Tensor,
    step_type: Tensor,
    gamma: float,
    lam: float = 1.0,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
) -> VTrace:
    """V-trace (Espeholt et al. 2018, equation 1 and remark 2); at seams the target is the value, and the advantage is 0.

    log_rho: log pi - log mu [N, T] of the actions, pi the policy that learns and mu the one that acted. The value is pi's;
    the other arguments are as in `gae`, whose advantages these are where log_rho is 0 and the clips are not below 1.
    The advantage bootstraps from the next target as far as lam says (as in DeepMind's rlax), so that this holds for any lam.
    """
    true_step = step_type[:, :-1] != StepType.LAST
    importance = log_rho.masked_fill(~true_step, 0.0).exp()
    rho = importance.clamp(max=rho_clip)
    delta = (reward + gamma * discount * value[:, 1:] - value[:, :-1]) * true_step
    excess = decayed_sums(rho * delta, gamma * lam * discount * importance.clamp(max=c_clip) * true_step)  # v_s - V(x_s)
    next_excess = torch.nn.functional.pad(excess[:, 1:], (0, 1))
    advantage = delta + gamma * lam * discount * true_step * next_excess
    return VTrace(value[:, :-1] + excess, advantage, rho)


def decayed_sums(delta: Tensor, decay: Tensor) -> Tensor:
    """S_t = delta_t + decay_t S_{t+1} from the window's end backwards, all [N, T]."""
    total = torch.zeros_like(delta[:, 0])
    backwards = []
    for delta_t, decay_t in zip(reversed(delta.t().contiguous().unbind()), reversed(decay.t().contiguous().unbind())):
        total = torch.addcmul(delta_t, decay_t, total)
        backwards.append(total)
    return torch.stack(backwards[::-1], 1)


def as_learned(fields: Mapping[str, Tensor], reward_clip: float | None, life_loss: bool) -> tuple[Tensor, Tensor]:
    """Rewards and discounts [N, T], rewards clipped to [-reward_clip, reward_clip] and a lost life the end on demand."""
    reward, discount = fields["reward"], fields["discount"]
    if reward_clip is not None:
        reward = reward.clamp(-reward_clip, reward_clip)
    if life_loss:
        discount = life_loss_discount(discount, fields["lives"], fields["step_type"])
    return reward, discount


def life_loss_discount(discount: Tensor, lives: Tensor, step_type: Tensor) -> Tensor:
    """The discount [N, T], with 0 also where a step cost a life. lives: [N, T+1]; step_type: uint8 [N, T+1]."""
    lost = (lives[:, 1:] < lives[:, :-1]) & (step_type[:, :-1] != StepType.LAST)
    return discount.masked_fill(lost, 0.0)


def explained_variance(prediction: Tensor, target: Tensor) -> Tensor:
    """The scalar 1 - Var[target - prediction] / Var[target]; nan where the target does not vary."""
    variance = target.var(correction=0)
    ratio = (target - prediction).var(correction=0) / variance
    return torch.where(variance > 0, 1 - ratio, torch.nan)


def advantage_weights(advantage: Tensor, beta: float, largest: float) -> Tensor:
    """exp(A / beta), at most `largest` (Peng et al. 2019, "Advantage-Weighted Regression", section 3.3)."""
    return (advantage / beta).clamp(max=math.log(largest)).exp()


def step_advantage(
    reward: Tensor, discount: Tensor, value: Tensor, return_to_go: Tensor, steps_to_go: Tensor, gamma: float, lam: float
) -> Tensor:
    """DigiRL's step-level advantages [N, T] (Bai et al. 2024, section 4.2): Monte Carlo near the end, one-step far from it.

    A_h = lam^(H-h) (G_h - V_h) + (1 - lam^(H-h)) (r_h + gamma V_{h+1} - V_h), where H is the last step. The paper's only
    reward is a success at H, and its Monte Carlo term is that alone; with rewards at any step it needs the baseline V_h.
    reward, discount: [N, T]. value, return_to_go (G), steps_to_go (H - h + 1): [N, T+1].
    """
    monte_carlo = return_to_go[:, :-1] - value[:, :-1]
    one_step = reward + gamma * discount * value[:, 1:] - value[:, :-1]
    share = lam ** (steps_to_go[:, :-1] - 1).clamp(min=0)
    return share * monte_carlo + (1 - share) * one_step
