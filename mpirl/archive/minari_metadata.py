"""What a Minari dataset says about itself: its name and place, its spaces and its environment, as JSON text."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mpirl.errors import UserError
from mpirl.specs import ArraySpec, bound_of

NAME = re.compile(r"(?:[-_\w][-_\w/]*[-_\w]+/)?[-_\w]+?-v\d+")  # as Minari 0.5 takes them, with a version
GYMNASIUM, ALE = "mpirl.emulators.gymnasium.GymnasiumEmulator", "mpirl.emulators.ale.AtariLanes"

Leaves = dict[str, tuple[str, Mapping[str, Any]]]


def check_name(name: str) -> None:
    """Raise UserError for what Minari cannot name a dataset."""
    if not NAME.fullmatch(name):
        hint = f": write {name}-v0" if NAME.fullmatch(f"{name}-v0") else ""
        raise UserError(f"dataset name {name!r}: Minari takes name-vN or namespace/name-vN, of letters, digits, - and _{hint}")


def datasets_path() -> Path:
    """Where Minari looks for datasets: $MINARI_DATASETS_PATH, or ~/.minari/datasets."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


def observation_paths(names: Mapping[str, Any]) -> dict[str, str]:
    """{observation field: its path in an episode}: a dict observation becomes groups, nested ones too."""
    paths = {name: "/".join(["observations", *name.replace("/", ".").split(".")[1:]]) for name in names}
    for name, path in paths.items():
        clash = [other for other in names if other != name and f"{paths[other]}/".startswith(f"{path}/")]
        if clash or path.endswith("/") or "//" in path:
            beside = f" beside {', '.join(clash)}" if clash else ""
            raise UserError(f"observation field {name!r} cannot be a group of a Minari dataset{beside}: rename it")
    return paths


def space_json(spec: ArraySpec) -> dict[str, Any]:
    """The Gymnasium space of a spec, as Minari writes it."""
    if spec.is_discrete:
        return {"type": "Discrete", "dtype": "int64", "start": 0, "n": int(spec.num_values)}
    lowest, highest = _range(np.dtype(spec.dtype))
    low = np.broadcast_to(np.asarray(lowest if spec.low is None else spec.low), spec.shape).astype(spec.dtype)
    high = np.broadcast_to(np.asarray(highest if spec.high is None else spec.high), spec.shape).astype(spec.dtype)
    return {"type": "Box", "dtype": spec.dtype, "shape": list(spec.shape), "low": low.tolist(), "high": high.tolist()}


def observation_space_json(specs: Mapping[str, ArraySpec]) -> dict[str, Any]:
    """The space of an observation: of the one array, or a Dict, nested as `observation_paths` says."""
    if set(specs) == {"observation"}:
        return space_json(specs["observation"])
    tree: dict[str, Any] = {"type": "Dict", "subspaces": {}}
    for name, path in observation_paths(specs).items():
        *groups, key = path.split("/")[1:]
        place = tree
        for group in groups:
            place = place["subspaces"].setdefault(group, {"type": "Dict", "subspaces": {}})
        place["subspaces"][key] = space_json(specs[name])
    return tree


def space_leaves(space: Mapping[str, Any], name: str = "observation", path: str = "observations") -> Leaves:
    """The other way round: {observation field: (path in an episode, space)}."""
    if space["type"] != "Dict":
        return {name: (path, space)}
    leaves: Leaves = {}
    for key, inner in space["subspaces"].items():
        leaves.update(space_leaves(inner, f"{name}.{key}", f"{path}/{key}"))
    return leaves


def spec_of_observation(space: Mapping[str, Any], name: str) -> ArraySpec:
    """The spec that the Gymnasium emulator has for this space: float64 becomes float32, a Discrete counts from 0."""
    kind = space["type"]
    if kind == "Discrete":
        return ArraySpec((), "int64", num_values=int(space["n"]))
    if kind == "Box":
        return _box(space, "float32" if space["dtype"] == "float64" else space["dtype"])
    if kind == "MultiBinary":
        shape = space["n"] if isinstance(space["n"], list) else [space["n"]]
        return ArraySpec(tuple(shape), "int8", low=0.0, high=1.0)
    if kind == "MultiDiscrete":
        start, count = np.asarray(space["start"]), np.asarray(space["nvec"])
        return ArraySpec(count.shape, space["dtype"], low=bound_of(start), high=bound_of(start + count - 1))
    raise UserError(f"{name} has a space of type {kind}; mpirl has Box, Discrete, MultiBinary, MultiDiscrete and Dict of these")


def spec_of_action(space: Mapping[str, Any]) -> ArraySpec:
    """The spec that the Gymnasium emulator has for actions of this space."""
    if space["type"] == "Discrete":
        return ArraySpec((), "int64", num_values=int(space["n"]))
    if space["type"] == "Box" and np.dtype(space["dtype"]).kind == "f":
        return _box(space, "float32")
    of = f" of {space['dtype']}" if space["type"] == "Box" else ""
    raise UserError(f"the action has a space of type {space['type']}{of}; mpirl has Discrete and Box of floats")


def environment_json(config: Mapping[str, Any]) -> str | None:
    """The EnvSpec that `recover_environment` makes the environment from; None for emulators that Gymnasium does not know."""
    node = config.get("emulator") or {}
    if node.get("_target_") == GYMNASIUM:
        settings = {"id": node["id"], **(node.get("settings") or {})}
        # Its entry point is known to Gymnasium alone, which finds it by the id.
        return _environment(str(node["id"]).rpartition(":")[2], "gymnasium:make", settings)
    is_square = node.get("width", 84) == node.get("height", 84)  # others cannot be told in JSON
    return _atari(node) if node.get("_target_") == ALE and is_square else None


def _atari(node: Mapping[str, Any]) -> str:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[-\s]", "_", str(node["game"])).lower()
    settings = {
        "game": words,
        "repeat_action_probability": node["repeat_action_probability"],
        "full_action_space": node["full_action_space"],
        "frameskip": 1,
        "max_num_frames_per_episode": node.get("max_episode_frames", 108_000),
    }
    preprocessing = {
        "noop_max": node["noop_max"],
        "frame_skip": node.get("frame_skip", 4),
        "screen_size": node.get("width", 84),
        "grayscale_obs": node.get("grayscale", True),
    }
    wrapper = {
        "name": "AtariPreprocessing",
        "entry_point": "gymnasium.wrappers.atari_preprocessing:AtariPreprocessing",
        "kwargs": preprocessing,
    }
    id = "".join(word.capitalize() for word in words.split("_"))
    return _environment(f"ALE/{id}-v5", "ale_py.env:AtariEnv", settings, [wrapper])


def _environment(id: str, entry_point: str, settings: Mapping[str, Any], wrappers: list[Any] | None = None) -> str:
    return json.dumps(
        {
            "id": id,
            "entry_point": entry_point,
            "reward_threshold": None,
            "nondeterministic": False,
            "max_episode_steps": None,
            "order_enforce": bool(wrappers),  # else what makes it has its own wrappers
            "disable_env_checker": True,
            "kwargs": dict(settings),
            "additional_wrappers": wrappers or [],
            "vector_entry_point": None,
        }
    )


def _box(space: Mapping[str, Any], dtype: str) -> ArraySpec:
    low, high = (np.asarray(space[key], space["dtype"]) for key in ("low", "high"))
    return ArraySpec(tuple(space["shape"]), dtype, low=bound_of(low), high=bound_of(high))


def _range(dtype: np.dtype) -> tuple[float, float]:
    """The least and the greatest value of an unbounded array."""
    if dtype.kind == "f":
        return -np.inf, np.inf
    if dtype.kind == "b":
        return 0, 1
    return np.iinfo(dtype).min, np.iinfo(dtype).max
