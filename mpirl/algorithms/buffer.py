"""A replay buffer: the latest steps of all lanes, drawn from uniformly or by priority (Schaul et al. 2016)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mpirl.algorithms.sum_tree import SumTree
from mpirl.errors import UserError
from mpirl.specs import StepType

COLUMNS = ("step_type", "episode", "collected", "action", "reward", "discount")
LONG_AGO = 1 << 30  # the age of an observation whose episode began before the buffer saw its lane


@dataclass(frozen=True)
class Transitions:
    """Rows [B] of the buffer with what followed: returns + factor * (the value of the observation in row `next`).

    returns: float32 [B], the discounted rewards of up to n steps. factor: float32 [B], gamma^n, 0 after a termination.
    """

    rows: np.ndarray
    action: np.ndarray
    returns: np.ndarray
    factor: np.ndarray
    next: np.ndarray


class ReplayBuffer:
    """A ring of `capacity` rows, one for each observation of a lane, and of what was done and got there.

    Every row knows the rows before and after it in its lane. Stacks follow these links backwards, n-step returns forwards,
    so that every frame is stored once and nothing is lost where one batch ends and the next begins. Time by time and lane
    by lane, the newest rows replace the oldest. A row can be drawn when it is a true step (no seam), its n successors or
    the end of its episode are known, and the frames of its stack are still there.

    exponent: how far priorities count, 0 for uniform draws. device: where the frames lie; the rest is in host memory.
    """

    def __init__(
        self,
        names: Collection[str],
        capacity: int,
        frame_stack: int = 1,
        n_step: int = 1,
        gamma: float = 0.99,
        exponent: float = 0.0,
        device: str = "cpu",
    ):
        self.names, self.capacity, self.device = tuple(names), capacity, device
        self.frame_stack, self.n_step, self.gamma, self.exponent = frame_stack, n_step, gamma, exponent
        self.num_steps = 0  # true steps taken in so far, evicted ones included
        self.largest = 1.0  # priority so far, that of new rows
        self._written = 0  # rows so far, evicted ones included
        self._tree = SumTree(capacity)
        self._frames: dict[str, Tensor] = {}
        self._before, self._after = np.arange(capacity), np.arange(capacity)  # a row without a neighbour is its own
        self._age = np.zeros(capacity, np.int32)  # steps since FIRST
        self._is_last, self._is_step = np.zeros(capacity, bool), np.zeros(capacity, bool)
        self._reward, self._discount = np.zeros(capacity, np.float32), np.zeros(capacity, np.float32)
        self._returns, self._factor = np.zeros(capacity, np.float32), np.zeros(capacity, np.float32)
        self._next = np.zeros(capacity, np.int64)
        self._action = np.zeros(0)
        self._waiting = np.zeros(0, np.int64)  # rows of steps whose successors are not all known
        self._ends = np.zeros(0, np.int64)  # rows [N] of the latest observations
        self._end_at = np.zeros((2, 0), np.int64)  # their episodes, and the lanes' true steps until then

    def __len__(self) -> int:
        """Rows in use."""
        return min(self._written, self.capacity)

    @property
    def is_ready(self) -> bool:
        """Whether there is anything to draw."""
        return self._tree.total > 0

    def append(self, fields: Mapping[str, Tensor]) -> None:
        """Take a batch in: N lanes x T steps of the table's fields, on any device.

        Where the batch does not begin with what the one before ended with, streams break off and new ones begin.
        Raises UserError if the buffer is too small for such batches.
        """
        column = {name: fields[name].cpu().numpy() for name in COLUMNS}
        if not self._frames:
            self._allocate(fields, column["action"])
        is_step = column["step_type"][:, :-1] != StepType.LAST
        starts = np.stack([column["episode"][:, 0], column["collected"] - is_step.sum(1)])
        goes_on = np.array_equal(self._end_at, starts)
        rows = self._place(fields, column["step_type"], goes_on)
        here = rows[:, :-1]
        self._action[here], self._reward[here], self._discount[here] = column["action"], column["reward"], column["discount"]
        self._is_step[here] = is_step
        self._ends, self._end_at = rows[:, -1], np.stack([column["episode"][:, -1], column["collected"]])
        self.num_steps += int(np.count_nonzero(is_step))
        self._complete(np.concatenate([self._waiting, here[is_step]]))

    def draw(self, count: int, random: np.random.Generator) -> Transitions:
        """`count` transitions by priority, with replacement."""
        rows = self._tree.draw(count, random)
        columns = self._action, self._returns, self._factor, self._next
        return Transitions(rows, *(column[rows] for column in columns))

    def weights(self, rows: np.ndarray, beta: float) -> np.ndarray:
        """Importance weights of drawn rows, float32 [B]: (1 / P)^beta, scaled so that the largest is 1 (section 3.4)."""
        priorities = self._tree.priorities(rows)
        return ((priorities.min() / priorities) ** beta).astype(np.float32)

    def prioritise(self, rows: np.ndarray, error: np.ndarray) -> None:
        """Give drawn rows the priorities (|error| + 1e-6)^exponent."""
        priorities = (np.abs(error.astype(np.float64)) + 1e-6) ** self.exponent
        self.largest = max(self.largest, float(priorities.max()))
        self._tree.set(rows, priorities)

    def observe(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Model inputs {field: [B, (k,) ...]} of rows [B], on the buffer's device; frames of earlier episodes are zero."""
        window = self._windows(rows)
        index = torch.from_numpy(window.flatten()).to(self.device)
        too_old = np.arange(self.frame_stack - 1, -1, -1) > self._age[rows][:, None]
        blank = torch.from_numpy(np.flatnonzero(too_old)).to(self.device)
        observation = {}
        for name, frames in self._frames.items():
            flat = frames.index_select(0, index)
            observation[name] = flat if self.frame_stack == 1 else flat.index_fill_(0, blank, 0).unflatten(0, window.shape)
        return observation

    def step_types(self, rows: np.ndarray) -> np.ndarray:
        """uint8 [B] of rows [B]."""
        kinds = np.where(self._is_last[rows], StepType.LAST, StepType.MID)
        return np.where(self._age[rows] == 0, StepType.FIRST, kinds).astype(np.uint8)

    def drawable(self) -> np.ndarray:
        """The rows that can be drawn, oldest first."""
        rows = np.arange(self._written - len(self), self._written) % self.capacity
        return rows[self._tree.priorities(rows) > 0]

    def _allocate(self, fields: Mapping[str, Tensor], action: np.ndarray) -> None:
        self._action = np.zeros((self.capacity, *action.shape[2:]), action.dtype)
        for name in self.names:
            shape, dtype = fields[name].shape[2:], fields[name].dtype
            self._frames[name] = torch.empty((self.capacity, *shape), dtype=dtype, device=self.device)

    def _place(self, fields: Mapping[str, Tensor], step_type: np.ndarray, goes_on: bool) -> np.ndarray:
        """Store the batch's new observations, linked to the latest where lanes go on; the rows [N, T+1] of o_0 .. o_T."""
        num_lanes, num_observations = step_type.shape
        if not goes_on:
            self._complete(self._waiting, cut_off=True)
        num_new = num_observations - 1 if goes_on else num_observations + self.frame_stack - 1
        self._check_room(num_lanes, num_observations)
        new = (self._written + np.arange(num_new * num_lanes)).reshape(num_new, num_lanes) % self.capacity  # by time
        self._evict(new.flatten())
        index = torch.from_numpy(new.flatten()).to(self.device)
        for name, frames in self._frames.items():
            newest = fields[name][:, -num_new:].transpose(0, 1).flatten(0, 1)
            frames.index_copy_(0, index, newest.to(self.device))
        chain = np.concatenate([self._ends[:, None], new.T], 1) if goes_on else new.T  # [N, ...]
        if not goes_on:
            self._before[chain[:, 0]] = chain[:, 0]
        self._before[chain[:, 1:]], self._after[chain[:, :-1]] = chain[:, :-1], chain[:, 1:]
        self._after[chain[:, -1]] = chain[:, -1]
        rows = chain[:, -num_observations:]
        # At a new stream, frames of earlier episodes are zero in the batch's context already.
        self._age[rows] = ages(step_type, self._age[rows[:, 0]] if goes_on else np.full(num_lanes, LONG_AGO))
        self._is_last[rows] = step_type == StepType.LAST
        self._written += new.size
        return rows

    def _check_room(self, num_lanes: int, num_observations: int) -> None:
        needed = 2 * num_lanes * (num_observations + self.frame_stack + self.n_step)
        if self.capacity < needed:
            raise UserError(
                f"algorithm.buffer_size={self.capacity} is too small for iterations of {num_lanes} lanes x "
                f"{num_observations - 1} steps: write at least {needed}, or fewer steps"
            )

    def _evict(self, rows: np.ndarray) -> None:
        """Forget rows, and stop drawing those whose stacks show them."""
        self._tree.set(rows, 0)
        self._is_step[rows] = False
        later = rows
        for steps in range(1, self.frame_stack):
            later = self._after[later]
            self._tree.set(later[self._age[later] >= steps], 0)

    def _complete(self, rows: np.ndarray, cut_off: bool = False) -> None:
        """Work out the n-step returns of steps, as far as successors are known; the others wait.

        cut_off: no successors will come; returns then bootstrap from the last observation there is.
        """
        at, steps = rows, np.zeros(len(rows), np.int64)
        returns, factor = np.zeros(len(rows), np.float32), np.ones(len(rows), np.float32)
        for _ in range(self.n_step):
            more = self._is_step[at] & (factor > 0)
            returns += np.where(more, factor * self._reward[at], 0)
            factor *= np.where(more, self.gamma * self._discount[at], 1)
            at, steps = np.where(more, self._after[at], at), steps + more
        done = (steps == self.n_step) | (factor == 0) | self._is_last[at] | cut_off
        self._returns[rows], self._factor[rows], self._next[rows] = returns, factor, at
        self._tree.set(rows[done], self.largest)
        self._waiting = rows[~done]

    def _windows(self, rows: np.ndarray) -> np.ndarray:
        """The rows of stacks, oldest first, [B, k]."""
        window = [rows]
        for _ in range(self.frame_stack - 1):
            window.append(self._before[window[-1]])
        return np.stack(window[::-1], 1)


def ages(step_type: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Steps since FIRST, int64 [N, T+1], from step types uint8 [N, T+1] and the ages [N] of the first observations."""
    now = np.arange(step_type.shape[1])
    first = np.maximum.accumulate(np.where(step_type == StepType.FIRST, now, -1), axis=1)
    return np.where(first >= 0, now - first, np.minimum(before[:, None] + now, LONG_AGO))
