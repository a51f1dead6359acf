"""A flat HDF5 file of steps, such as those of D4RL, as a source of episodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from mpirl.archive.sources import LOG_PROB, Source, SourceEpisode, array_spec, extras_of, info_values, log_prob_values, opened
from mpirl.errors import UserError
from mpirl.specs import ArraySpec, Specs

KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")


class FlatSource(Source):
    """Steps of all episodes one after the other, as D4RL has them.

    An episode ends where `terminals` or `timeouts` say so. If there are no `next_observations`, the observation after
    the last step is unknown: a terminated episode gets the one before it again, of another one the last step is dropped.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.about = {"format": "flat HDF5", "path": str(path.resolve())}
        with opened(path) as file:
            self._check(file)
            self.num_steps = len(file["rewards"])
            self._has_next = "next_observations" in file
            self._terminals, timeouts = (file[name][:].reshape(-1).astype(bool) for name in ("terminals", "timeouts"))
            self._ends = np.flatnonzero(self._terminals | timeouts)
            self.specs = Specs({"observation": array_spec(file["observations"])}, _flat_action(file["actions"]))
            self.extras = extras_of(file.get("infos"), self.specs, self, [self.num_steps])

    def _check(self, file: h5py.File) -> None:
        missing = [name for name in KEYS if name not in file]
        if missing:
            raise UserError(
                f"{self.path} lacks {', '.join(missing)}: it is no flat file of episodes (with {', '.join(KEYS)}); it has "
                f"{', '.join(list(file)[:10]) or 'nothing'}"
            )
        names = [*KEYS, *(["next_observations"] if "next_observations" in file else [])]
        groups = [name for name in names if not isinstance(file[name], h5py.Dataset) or not file[name].shape]
        if groups:
            raise UserError(f"{self.path}: {', '.join(groups)} should be arrays of one row for each step")
        lengths = {name: len(file[name]) for name in names}
        if len(set(lengths.values())) > 1 or not lengths["rewards"]:
            raise UserError(f"{self.path}: these should have one row for each step, and have {lengths}")

    def episodes(self) -> Iterator[SourceEpisode]:
        last = self.num_steps - 1
        if not len(self._ends) or self._ends[-1] != last:
            self.count("episodes without an end taken as truncated")
        start = 0
        with opened(self.path) as file:
            for end in dict.fromkeys([*self._ends.tolist(), last]):
                terminated = bool(self._terminals[end])
                length = end - start + (1 if self._has_next or terminated else 0)
                self.count("steps dropped, as the observation after them is not in the file", end - start + 1 - length)
                if length:
                    yield self._read(file, slice(start, start + length), end, terminated)
                start = end + 1

    def _read(self, file: h5py.File, steps: slice, end: int, terminated: bool) -> SourceEpisode:
        length = steps.stop - steps.start
        spec = self.specs.observation["observation"]
        observation = file["observations"][steps.start : end + 1]  # one more than steps where the last step was dropped
        if self._has_next:
            observation = np.concatenate([observation, file["next_observations"][end : end + 1]])
        elif len(observation) == length:
            observation = np.concatenate([observation, observation[-1:]])
        infos = file.get("infos", {})
        cut = slice(steps.start, end + 1)
        return SourceEpisode(
            observation={"observation": observation.astype(spec.dtype)},
            action=file["actions"][steps].reshape(-1, *self.specs.action.shape).astype(self.specs.action.dtype),
            reward=file["rewards"][steps].reshape(-1).astype("float32"),
            log_prob=log_prob_values([infos[name][cut] if name in infos else None for name in LOG_PROB], length),
            extras={name: info_values(infos[path][cut], spec, length) for name, (path, spec) in self.extras.items()},
            terminated=terminated,
        )


def _flat_action(actions: h5py.Dataset) -> ArraySpec:
    """Real vectors, or numbers of discrete actions."""
    if actions.dtype.kind == "f":
        return array_spec(actions)
    if actions.dtype.kind not in "iu" or int(np.prod(actions.shape[1:])) != 1:
        raise UserError(
            f"actions in {actions.file.filename} have shape {actions.shape} and dtype {actions.dtype}; mpirl has real vectors, "
            "and one whole number for each step"
        )
    values = actions[:]
    if values.min() < 0:
        raise UserError(f"actions in {actions.file.filename} are whole numbers from {values.min()} on; they should begin at 0")
    return ArraySpec((), "int64", num_values=int(values.max()) + 1)
