"""Parts of a set cost, in place of an emulator and an algorithm: what is left is mpirl's own."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from mpirl.algorithms.base import Algorithm, Batch
from mpirl.emulators.base import EmulatorBatch, Frame
from mpirl.errors import UserError
from mpirl.models.base import Model
from mpirl.specs import ArraySpec, Specs, StepType


class SetLatency(EmulatorBatch):
    """Lanes that give frames uint8 [height, width] and never end. A step of all lanes sleeps for `latency` seconds."""

    def __init__(self, num_lanes: int, latency: float, height: int = 84, width: int = 84, num_actions: int = 6):
        self.num_lanes, self._latency = num_lanes, latency
        frame = ArraySpec((height, width), "uint8", low=0.0, high=255.0)
        self.specs = Specs({"observation": frame}, ArraySpec((), "int64", num_values=num_actions))
        self._frames = np.random.default_rng(0).integers(0, 256, (num_lanes, height, width), np.uint8)

    def reset(self, seed: np.ndarray, out: Frame) -> None:
        self._write(StepType.FIRST, out)

    def step(self, action: np.ndarray, seed: np.ndarray, out: Frame) -> None:
        time.sleep(self._latency)
        self._write(StepType.MID, out)

    def _write(self, step_type: int, out: Frame) -> None:
        out.observation["observation"][:] = self._frames
        out.step_type[:], out.reward[:], out.discount[:] = step_type, 0.0, 1.0

    def close(self) -> None:
        pass


class SetCost(Algorithm):
    """An update takes `seconds`: it sleeps, or computes on one core, in calls of about a minibatch's length."""

    def __init__(self, model: Model, specs: Specs, seconds: float, kind: str = "sleeps"):
        if kind not in ("sleeps", "computes"):
            raise UserError(f"algorithm.kind={kind}: choose sleeps or computes")
        self.model, self._seconds, self._kind = model, seconds, kind
        self._matrix = torch.rand(1024, 1024)

    def learn(self, batch: Batch) -> dict[str, float]:
        end = time.perf_counter() + self._seconds
        if self._kind == "sleeps":
            time.sleep(self._seconds)
        while time.perf_counter() < end:
            torch.mm(self._matrix, self._matrix)
        return {"learned": int(batch.is_step.sum())}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

