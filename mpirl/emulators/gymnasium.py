"""Gymnasium: any environment of Gymnasium by its id, as a single emulator."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from mpirl.emulators.base import Emulator, Transition
from mpirl.errors import UserError
from mpirl.specs import ArraySpec, Specs, bound_of, observation_fields

Converter = Callable[[Any], Any]


class GymnasiumEmulator(Emulator):
    """The environment that `gymnasium.make(id, **settings)` makes.

    Observations: Box, Discrete, MultiBinary, MultiDiscrete, and Dict of these, nested or not. float64 becomes float32,
    and a Discrete counts from 0 whatever its start. Actions: Discrete, or Box of floats, clipped to its bounds.
    With `render`, pictures come from the render mode rgb_array.
    """

    render_settings = {"render": True}
    """Settings with which the same environment, from the same seed and actions, gives pictures."""

    def __init__(self, id: str, settings: Mapping[str, Any] | None = None, render: bool = False):
        arguments = {"disable_env_checker": True, **(settings or {})}  # the lanes check what is returned
        if render:
            arguments["render_mode"] = "rgb_array"
        self._renders, self._id = render, id
        self._environment = _make(_import_gymnasium(), id, arguments)
        observation: dict[str, ArraySpec] = {}
        self._converters: dict[str, Converter] = {}
        for name, space in _leaves(self._environment.observation_space).items():
            observation[name], self._converters[name] = _observation(name, space, id)
        action, self._to_environment = _action(self._environment.action_space, id)
        self.specs = Specs(observation, action)
        self.steps_per_second = self._environment.metadata.get("render_fps")

    def reset(self, seed: int | None) -> Any:
        observation, _ = self._environment.reset(seed=seed)
        return self._converted(observation)

    def step(self, action: np.ndarray) -> Transition:
        observation, reward, terminated, truncated, _ = self._environment.step(self._to_environment(action))
        return Transition(self._converted(observation), float(reward), bool(terminated), bool(truncated))

    def _converted(self, observation: Any) -> Any:
        """The array, or {key: array} with a nested key written outer.inner."""
        fields = observation_fields(observation)
        arrays = {name: convert(fields[name]) for name, convert in self._converters.items()}
        if "observation" in arrays:
            return arrays["observation"]
        return {name.removeprefix("observation."): array for name, array in arrays.items()}

    def render(self) -> np.ndarray | None:
        if not self._renders:
            return None
        try:
            picture = self._environment.render()
        except (_import_gymnasium().error.Error, NotImplementedError, ImportError) as error:
            raise UserError(f"emulator.id={self._id} cannot make pictures: {_one_line(error)}") from error
        return None if picture is None else np.asarray(picture, np.uint8)

    def close(self) -> None:
        self._environment.close()


def _import_gymnasium() -> ModuleType:
    try:
        import gymnasium
    except ImportError as error:
        raise UserError(f"the gymnasium emulator needs Gymnasium ({error}): pip install 'mpirl[gymnasium]'") from error
    return gymnasium


def _make(gymnasium: ModuleType, id: str, arguments: Mapping[str, Any]) -> Any:
    try:
        return gymnasium.make(id, **arguments)
    except gymnasium.error.UnregisteredEnv as error:
        lowered = {known.lower(): known for known in gymnasium.registry}
        close = [lowered[match] for match in difflib.get_close_matches(id.lower(), lowered)]
        hint = f"close ids: {', '.join(close)}" if close else "an id from another package is written package:id"
        raise UserError(f"emulator.id={id}: {_one_line(error)} ({hint})") from error
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise UserError(f"emulator.id={id} cannot be made: {_one_line(error)}") from error
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise UserError(f"emulator.settings={dict(arguments)} of {id}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _leaves(space: Any, name: str = "observation") -> dict[str, Any]:
    """Flatten a (nested) Dict space to {field name: space}."""
    from gymnasium.spaces import Dict

    if not isinstance(space, Dict):
        return {name: space}
    leaves: dict[str, Any] = {}
    for key, inner in space.spaces.items():
        leaves.update(_leaves(inner, f"{name}.{key}"))
    return leaves


def _observation(name: str, space: Any, id: str) -> tuple[ArraySpec, Converter]:
    """The spec of one observation field, and what makes its array from Gymnasium's value."""
    from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

    if isinstance(space, Discrete):
        start = int(space.start)
        return ArraySpec((), "int64", num_values=int(space.n)), lambda value: np.asarray(value - start, np.int64)
    if isinstance(space, Box):
        dtype = np.dtype("float32") if space.dtype == np.float64 else space.dtype
        spec = ArraySpec(space.shape, dtype, low=bound_of(space.low), high=bound_of(space.high))
    elif isinstance(space, MultiBinary):
        spec = ArraySpec(space.shape, space.dtype, low=0.0, high=1.0)
    elif isinstance(space, MultiDiscrete):
        spec = ArraySpec(space.shape, space.dtype, low=bound_of(space.start), high=bound_of(space.start + space.nvec - 1))
    else:
        raise UserError(
            f"emulator.id={id}: {name} has space {space}; supported are Box, Discrete, MultiBinary, MultiDiscrete and "
            f"Dict of these: wrap the environment (gymnasium.ObservationWrapper)"
        )
    return spec, lambda value: _as_array(value, np.dtype(spec.dtype), name, id)


def _as_array(value: Any, dtype: np.dtype, name: str, id: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind == "f" and dtype.kind != "f":  # would lose the fractions without a word
        raise UserError(f"emulator.id={id} returned {name} with dtype {array.dtype}, its space says {dtype}")
    return array.astype(dtype, copy=False)


def _action(space: Any, id: str) -> tuple[ArraySpec, Converter]:
    """The spec of the action, and what makes Gymnasium's action from ours."""
    from gymnasium.spaces import Box, Discrete

    if isinstance(space, Discrete):
        start = int(space.start)
        return ArraySpec((), "int64", num_values=int(space.n)), lambda action: int(action) + start
    if isinstance(space, Box) and space.dtype.kind == "f":
        spec = ArraySpec(space.shape, "float32", low=bound_of(space.low), high=bound_of(space.high))
        return spec, lambda action: np.clip(np.asarray(action, space.dtype), space.low, space.high)
    raise UserError(
        f"emulator.id={id}: the action has space {space}; supported are Discrete and Box of floats: "
        f"wrap the environment (gymnasium.ActionWrapper)"
    )
