"""Stacks of the latest k frames, formed where they are needed from trajectories that hold single frames.

A trajectory has C >= k - 1 frames of context in front of o_0. A stack never shows a frame of an earlier episode: such
frames are zero. Context frames of an earlier episode are stored as zeros already, so only an episode that began
inside the window needs care; the age of an observation, the number of steps since its episode's FIRST, tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from mpirl.specs import StepType

LONG_AGO = 1 << 30
"""Added age of observations whose episode began before the window."""


def ages(step_type: Tensor) -> Tensor:
    """uint8 [N, T+1] step types to int64 [N, T+1]: steps since FIRST, more than LONG_AGO / 2 if FIRST is not in the window."""
    now = torch.arange(step_type.shape[1], device=step_type.device)
    first = torch.where(step_type == StepType.FIRST, now, -LONG_AGO).cummax(1).values
    return now - first


def stack_view(frames: Tensor, num_observations: int, frame_stack: int) -> Tensor:
    """[N, C+T+1, ...] to [N, T+1, k, ...], oldest frame first, as a view; frames of earlier episodes still show."""
    frames = frames[:, frames.shape[1] - num_observations - frame_stack + 1 :]
    return frames.unfold(1, frame_stack, 1).movedim(-1, 2)


def gather_stacks(frames: Tensor, age: Tensor, index: Tensor, frame_stack: int) -> Tensor:
    """The stacks [B, k, ...] (plain observations [B, ...] for k = 1) at flat positions.

    frames: [N, C+T+1, ...]. age: int64 [N, T+1]. index: int64 [B], lane * (T + 1) + t.
    """
    num_observations = age.shape[1]
    lane = index.div(num_observations, rounding_mode="floor")
    newest = index + (lane + 1) * (frames.shape[1] - num_observations)
    if frame_stack == 1:
        return frames.flatten(0, 1).index_select(0, newest)
    back = torch.arange(frame_stack - 1, -1, -1, device=index.device)
    positions = newest.unsqueeze(1) - back  # [B, k]
    too_old = back > age.flatten().index_select(0, index).unsqueeze(1)  # [B, k]
    flat = frames.flatten(0, 1).index_select(0, positions.flatten())
    return _blank(flat, too_old.flatten()).unflatten(0, positions.shape)


def _blank(flat: Tensor, rows: Tensor) -> Tensor:
    """Zero these rows (bool [B k]) in place."""
    if flat.is_cuda:  # finding the few rows would wait for the device, so all are written
        return flat.masked_fill_(rows.view(-1, *[1] * (flat.ndim - 1)), 0)
    return flat.index_fill_(0, rows.nonzero().squeeze(1), 0)


def observer(observation: Mapping[str, Tensor], step_type: Tensor, frame_stack: int) -> Callable[[Tensor], dict[str, Tensor]]:
    """A batch's `observe`: flat positions int64 [B] to model inputs {field: [B, (k,) ...]}.

    observation: {field: [N, C+T+1, ...]}. step_type: uint8 [N, T+1].
    """
    return observe_with(observation, ages(step_type), frame_stack)


def observe_with(observation: Mapping[str, Tensor], age: Tensor, frame_stack: int) -> Callable[[Tensor], dict[str, Tensor]]:
    """As `observer`, from the observations' ages int64 [N, T+1]."""

    def observe(index: Tensor) -> dict[str, Tensor]:
        return {name: gather_stacks(frames, age, index, frame_stack) for name, frames in observation.items()}

    return observe


def next_age(age: np.ndarray, step_type: np.ndarray) -> np.ndarray:
    """int64 [N] ages of a worker's newest observations, from the ages before them and their step types uint8 [N]."""
    return np.where(step_type == StepType.FIRST, 0, age + 1)


def stack_at(frames: np.ndarray, t: int, age: np.ndarray, frame_stack: int) -> np.ndarray:
    """The stacks [N, k, ...] (observations [N, ...] for k = 1) of step t from a trajectory [N, k-1+T+1, ...].

    age: int64 [N] at step t. It is a view unless an episode has just begun. Without its newest frame, the stack of
    step T is the next trajectory's context.
    """
    if frame_stack == 1:
        return frames[:, t]
    stack = frames[:, t : t + frame_stack]
    if not np.count_nonzero(age < frame_stack - 1):
        return stack
    stack = stack.copy()
    stack[np.arange(frame_stack - 1, -1, -1) > age[:, None]] = 0
    return stack
