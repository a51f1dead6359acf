"""A Minari dataset as a source of episodes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpirl.archive.format import layout_from_attributes
from mpirl.archive.minari import DATA, METADATA
from mpirl.archive.minari_metadata import observation_paths, space_leaves, spec_of_action, spec_of_observation
from mpirl.archive.sources import LOG_PROB, Source, SourceEpisode, extras_of, info_values, log_prob_values, opened
from mpirl.errors import UserError
from mpirl.specs import ArraySpec, Specs
from mpirl.trajectory import NO_SEED, Layout

ABOUT = ("dataset_id", "minari_version", "env_spec", "author", "algorithm_name", "code_permalink")
REWARD = ArraySpec((), "float32")


class MinariSource(Source):
    """A Minari dataset; `data` is the folder of its metadata.json."""

    def __init__(self, data: Path):
        super().__init__()
        self._data, self.path = data, data / DATA
        metadata = _read_metadata(data / METADATA)
        self._check(metadata)
        self._num_episodes, self.num_steps = metadata["total_episodes"], metadata["total_steps"]
        self.about = {"format": "minari", "path": str(data.resolve()), **{name: metadata.get(name) for name in ABOUT}}
        self._action = json.loads(metadata["action_space"])
        leaves = space_leaves(json.loads(metadata["observation_space"]))
        observation = {name: spec_of_observation(leaf, name) for name, (_, leaf) in leaves.items()}
        self.specs = Specs(observation, spec_of_action(self._action))
        self._observation = dict(leaves)
        with opened(self.path) as file:
            first = self._episode(file, 0) if self._num_episodes else {}
            num_steps = len(first["rewards"]) if first else 0
            self.extras = extras_of(first.get("infos"), self.specs, self, [num_steps, num_steps + 1])
        if metadata.get("mpirl"):
            self._take_layout(layout_from_attributes(metadata["mpirl"]["layout"]))

    def _check(self, metadata: Mapping[str, Any]) -> None:
        if metadata.get("data_format", "hdf5") != "hdf5":
            raise UserError(f"{self._data} has data_format {metadata['data_format']}; mpirl reads hdf5: convert it with Minari")
        for name in ("observation_space", "action_space", "total_episodes", "total_steps"):
            if name not in metadata:
                raise UserError(f"{self._data / METADATA} lacks {name}: load the dataset with Minari and save it anew")

    def _take_layout(self, layout: Layout) -> None:
        """The specs of a dataset that mpirl exported are known exactly."""
        paths = observation_paths(layout.specs.observation)
        spaces = dict(self._observation.values())
        self._observation = {name: (path, spaces[path]) for name, path in paths.items()}
        self.specs = layout.specs
        self.extras = {name: (name, spec) for name, spec in layout.extras.items()}

    def episodes(self) -> Iterator[SourceEpisode]:
        with opened(self.path) as file:
            for index in range(self._num_episodes):
                group = self._episode(file, index)
                length = len(group["rewards"])
                if length:
                    yield self._read(group, length)
                else:
                    self.count("episodes without a step left out")

    def _read(self, group: h5py.Group, length: int) -> SourceEpisode:
        terminated = bool(group["terminations"][-1])
        if not terminated and not group["truncations"][-1]:
            self.count("episodes without an end taken as truncated")
        infos = group.get("infos", {})
        extras = {**{name: (name, spec) for name, spec in self.specs.extras.items()}, **self.extras}
        return SourceEpisode(
            observation={
                name: _values(group, path, self.specs.observation[name], length + 1, space)
                for name, (path, space) in self._observation.items()
            },
            action=_values(group, "actions", self.specs.action, length, self._action),
            reward=_values(group, "rewards", REWARD, length),
            log_prob=log_prob_values([infos.get(name) for name in LOG_PROB], length),
            extras={name: info_values(infos.get(path), spec, length) for name, (path, spec) in extras.items()},
            terminated=terminated,
            seed=_seed(group.attrs.get("seed")),
        )

    def _episode(self, file: h5py.File, index: int) -> h5py.Group:
        if f"episode_{index}" not in file:
            raise UserError(f"{self.path} lacks episode_{index}; its {METADATA} speaks of {self._num_episodes} episodes")
        group = file[f"episode_{index}"]
        for name in ("observations", "actions", "rewards", "terminations", "truncations"):
            if name not in group:
                raise UserError(f"episode_{index} of {self.path} lacks {name}: it is no episode of a Minari dataset")
        return group


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is no JSON, as Minari would write it: {error}") from error


def _values(group: h5py.Group, path: str, spec: ArraySpec, length: int, space: Mapping[str, Any] | None = None) -> np.ndarray:
    """An array [length, ...] of an episode in its spec's dtype."""
    array = group[path][()] if isinstance(group.get(path), h5py.Dataset) else None
    if array is not None and len(spec.shape) > 1 and (array.dtype == object or array.dtype == np.uint8 and array.ndim == 2):
        array = _images(array, f"{path} of {group.name} in {group.file.filename}")
    if array is None or array.shape != (length, *spec.shape):
        found = "is missing" if array is None else f"has shape {array.shape}"
        raise UserError(f"{path} of {group.name} in {group.file.filename} {found}; it should be {[length, *spec.shape]}")
    start = (space or {}).get("start") if spec.is_discrete else None
    return (array - start if start else array).astype(spec.dtype)


def _images(frames: np.ndarray, place: str) -> np.ndarray:
    """Frames that Minari compressed as JPEG, one byte string each."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError(f"{place} are JPEG images: pip install pillow") from error
    try:
        return np.stack([np.asarray(Image.open(io.BytesIO(np.asarray(frame, np.uint8).tobytes()))) for frame in frames])
    except OSError as error:
        raise UserError(f"{place} are neither arrays of the space's shape nor JPEG images: {error}") from error


def _seed(seed: Any) -> int:
    return int(seed) if isinstance(seed, (int, np.integer)) and 0 <= int(seed) < 1 << 63 else NO_SEED
