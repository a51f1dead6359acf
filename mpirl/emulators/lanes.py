"""Lanes: a batch made of single emulators, with next-step autoreset."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from mpirl.build import settings_of
from mpirl.emulators.base import EmulatorBatch, Frame, Transition
from mpirl.errors import UserError
from mpirl.rules import joined
from mpirl.specs import ArraySpec, Specs, StepType, observation_fields
from mpirl.trajectory import NO_SEED


def make_lanes(target: Callable[..., Any], num_lanes: int, settings: Mapping[str, Any]) -> EmulatorBatch:
    """A batch of `num_lanes` lanes from an emulator class, or any callable that makes one emulator from `settings`.

    A subclass of EmulatorBatch makes its own lanes: it is called with `num_lanes` and the settings.
    """
    if isinstance(target, type) and issubclass(target, EmulatorBatch):
        return target(num_lanes=num_lanes, **settings)
    return EmulatorLanes(lambda: target(**settings), num_lanes)


def make_emulator(config: Mapping[str, Any], num_lanes: int, changes: Mapping[str, Any] | None = None) -> EmulatorBatch:
    """The emulator of a run's config in `num_lanes` lanes. changes: settings that are other on this rank."""
    target, settings = settings_of(joined(config["emulator"], changes or {}), "emulator", ("num_lanes",))
    return make_lanes(target, num_lanes, settings)


class EmulatorLanes(EmulatorBatch):
    """N emulators that `make()` makes, stepped one after the other.

    An emulator has `specs`, `reset` and `step`; `reseed_every`, `first_extras`, `render`, `steps_per_second` (when a human
    plays) and `close` are optional. It need not subclass `Emulator`.
    """

    def __init__(self, make: Callable[[], Any], num_lanes: int):
        self.num_lanes = num_lanes
        # Specs are asked of every rank, so that a rank without lanes makes one emulator too and never resets it.
        self._emulators = [make() for _ in range(max(num_lanes, 1))]
        for emulator in self._emulators:
            _check_emulator(emulator, self._emulators[0])
        self.specs: Specs = self._emulators[0].specs
        self.reseed_every = getattr(self._emulators[0], "reseed_every", 1)
        self.steps_per_second = getattr(self._emulators[0], "steps_per_second", None)
        self._ended = [False] * num_lanes

    def reset(self, seed: np.ndarray, out: Frame) -> None:
        for lane in range(self.num_lanes):
            self._begin(lane, int(seed[lane]), out)

    def step(self, action: np.ndarray, seed: np.ndarray, out: Frame) -> None:
        for lane in range(self.num_lanes):
            if self._ended[lane]:
                self._begin(lane, int(seed[lane]), out)
            else:
                self._advance(lane, action[lane], out)

    def _begin(self, lane: int, seed: int, out: Frame) -> None:
        emulator = self._emulators[lane]
        observation = emulator.reset(None if seed == NO_SEED else seed)
        extras = emulator.first_extras() if hasattr(emulator, "first_extras") else {}
        self._write(lane, observation, extras, out)
        out.step_type[lane], out.reward[lane], out.discount[lane] = StepType.FIRST, 0.0, 1.0
        self._ended[lane] = False

    def _advance(self, lane: int, action: np.ndarray, out: Frame) -> None:
        emulator = self._emulators[lane]
        observation, reward, terminated, truncated, extras = _transition(emulator, emulator.step(action))
        self._write(lane, observation, extras, out)
        self._ended[lane] = bool(terminated or truncated)
        out.step_type[lane] = StepType.LAST if self._ended[lane] else StepType.MID
        out.reward[lane] = reward
        out.discount[lane] = 0.0 if terminated else 1.0
        if not math.isfinite(out.reward[lane]):
            raise UserError(f"{_name(emulator)}.step returned reward {reward} in lane {lane}: make it finite in float32")

    def _write(self, lane: int, observation: Any, extras: Mapping[str, Any], out: Frame) -> None:
        emulator, specs = self._emulators[lane], self.specs
        fields = observation_fields(observation)
        if len(fields) > len(specs.observation):
            undeclared = sorted(set(fields) - set(specs.observation))
            raise UserError(f"{_name(emulator)} returned observation fields {undeclared} that its specs do not declare")
        for name, spec in specs.observation.items():
            out.observation[name][lane] = _checked(emulator, name, fields, spec)
        for name, spec in specs.extras.items():
            out.extras[name][lane] = _checked(emulator, name, extras, spec)

    def render(self, lane: int) -> np.ndarray | None:
        emulator = self._emulators[lane]
        return emulator.render() if hasattr(emulator, "render") else None

    def close(self) -> None:
        with ExitStack() as stack:  # one that fails to close does not keep the others open
            for emulator in self._emulators:
                stack.callback(getattr(emulator, "close", lambda: None))
        self._emulators = []


def _name(emulator: Any) -> str:
    return type(emulator).__name__


def _check_emulator(emulator: Any, first: Any) -> None:
    """Refuse what is no emulator, and emulators of one batch that differ."""
    for member in ("specs", "reset", "step"):
        if not hasattr(emulator, member):
            raise UserError(f"{_name(emulator)} is no emulator: it has no `{member}`; write specs, reset(seed), step(action)")
    if not isinstance(emulator.specs, Specs):
        raise UserError(f"{_name(emulator)}.specs is a {_name(emulator.specs)}: make it a mpirl.specs.Specs")
    if emulator.specs != first.specs:
        raise UserError(f"two {_name(emulator)} have different specs: {first.specs} and {emulator.specs}; they must be equal")


def _transition(emulator: Any, result: Any) -> Transition:
    """What `step` returned, also as a plain tuple of the same values."""
    if not isinstance(result, tuple) or len(result) not in (4, 5):
        raise UserError(f"{_name(emulator)}.step returned {result!r:.200}: return a mpirl.emulators.base.Transition")
    return Transition(*result)


def _checked(emulator: Any, name: str, values: Mapping[str, Any], spec: ArraySpec) -> np.ndarray:
    """The array `name`, if it is there with the shape and dtype of its spec; Python numbers and lists are converted."""
    if name not in values:
        raise UserError(f"{_name(emulator)} did not return {name!r}, which its specs declare; it returned {sorted(values)}")
    array = np.asarray(values[name])
    is_plain = not hasattr(values[name], "dtype")
    if array.dtype != spec.dtype and not (is_plain and np.can_cast(array.dtype, spec.dtype, "same_kind")):
        raise UserError(f"{_name(emulator)} returned {name!r} with dtype {array.dtype}, its specs say {spec.dtype}")
    if array.shape != spec.shape:
        raise UserError(f"{_name(emulator)} returned {name!r} with shape {array.shape}, its specs say {spec.shape}")
    return array
