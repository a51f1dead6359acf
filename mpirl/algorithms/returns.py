"""Returns and advantages: pure functions of a batch's arrays, lanes x steps.

Slot t with step_type[:, t] == LAST is a seam: nothing was decided, and nothing flows across it.
"""

from __future__ import annotations

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
    decay = gamma * lam * discount * true_step
    advantage = torch.zeros_like(delta[:, 0])
    backwards = []
    for delta_t, decay_t in zip(reversed(delta.t().contiguous().unbind()), reversed(decay.t().contiguous().unbind())):
        advantage = torch.addcmul(delta_t, decay_t, advantage)
        backwards.append(advantage)
    return torch.stack(backwards[::-1], 1)


def life_loss_discount(discount: Tensor, lives: Tensor, step_type: Tensor) -> Tensor:
    """The discount [N, T], with 0 also where a step cost a life. lives: [N, T+1]; step_type: uint8 [N, T+1]."""
    lost = (lives[:, 1:] < lives[:, :-1]) & (step_type[:, :-1] != StepType.LAST)
    return discount.masked_fill(lost, 0.0)


def explained_variance(prediction: Tensor, target: Tensor) -> Tensor:
    """The scalar 1 - Var[target - prediction] / Var[target]; nan where the target does not vary."""
    variance = target.var(correction=0)
    ratio = (target - prediction).var(correction=0) / variance
    return torch.where(variance > 0, 1 - ratio, torch.nan)
