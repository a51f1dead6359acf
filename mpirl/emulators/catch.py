"""Catch: a ball falls down a board and a paddle on the bottom row is moved under it. Tiny, for tests and first runs.

The game of bsuite (Osband et al., 2020) and of dm_env's examples.
"""

from __future__ import annotations

import time

import numpy as np

from mpirl.emulators.base import Emulator, Transition
from mpirl.errors import UserError
from mpirl.specs import ArraySpec, Specs

PIXELS = 16  # per cell, in the rendered picture


class Catch(Emulator):
    """Observation: the board, float32 [rows, columns], 1 at the ball and the paddle. Actions: 0 left, 1 stay, 2 right.

    An episode takes rows - 1 steps and ends with reward +1 (caught) or -1. `latency` is slept in every step, in
    seconds: it stands for a slow emulator in tests.
    """

    def __init__(self, rows: int = 10, columns: int = 5, latency: float = 0.0):
        if rows < 2 or columns < 1:
            raise UserError(f"Catch needs rows >= 2 and columns >= 1, got rows={rows}, columns={columns}")
        self._rows, self._columns, self._latency = rows, columns, latency
        self.specs = Specs(
            observation={"observation": ArraySpec((rows, columns), "float32", low=0.0, high=1.0)},
            action=ArraySpec((), "int64", num_values=3),
        )
        self._random = np.random.default_rng()
        self._row = self._column = self._paddle = 0

    def reset(self, seed: int | None) -> np.ndarray:
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self._row, self._column = 0, int(self._random.integers(self._columns))
        self._paddle = self._columns // 2
        return self._board()

    def step(self, action: np.ndarray) -> Transition:
        if self._latency > 0:
            time.sleep(self._latency)
        self._paddle = min(max(self._paddle + int(action) - 1, 0), self._columns - 1)
        self._row += 1
        landed = self._row == self._rows - 1
        reward = (1.0 if self._paddle == self._column else -1.0) if landed else 0.0
        return Transition(self._board(), reward, terminated=landed, truncated=False)

    def _board(self) -> np.ndarray:
        board = np.zeros((self._rows, self._columns), np.float32)
        board[self._row, self._column] = board[-1, self._paddle] = 1.0
        return board

    def render(self) -> np.ndarray:
        picture = np.kron(self._board(), np.full((PIXELS, PIXELS), 255)).astype(np.uint8)
        return np.repeat(picture[..., None], 3, axis=-1)
