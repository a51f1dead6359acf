"""Other people's episodes: what is common to the files that an archive can be made from. Read with h5py alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpirl.archive.format import OWN_NAMES
from mpirl.errors import UserError
from mpirl.specs import ArraySpec, Specs
from mpirl.trajectory import NO_SEED, Layout

LOG_PROB = ("log_prob", "action_log_probs")  # infos that are no extras


@dataclass(frozen=True)
class SourceEpisode:
    """L steps. observation, extras: {field: [L+1, ...]}; action: [L, ...]; reward, log_prob: [L], log_prob nan if unknown."""

    observation: Mapping[str, np.ndarray]
    action: np.ndarray
    reward: np.ndarray
    log_prob: np.ndarray
    extras: Mapping[str, np.ndarray]
    terminated: bool
    seed: int = NO_SEED


class Source(ABC):
    """A file of episodes. `counts` says, by the reason, how many steps or episodes were not taken as they are.

    extras: {field: (path, spec)}. about: plain values that say where this comes from. num_steps: as the file has them.
    """

    path: Path
    specs: Specs
    extras: Mapping[str, tuple[str, ArraySpec]]
    about: Mapping[str, Any]
    num_steps: int

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    @abstractmethod
    def episodes(self) -> Iterator[SourceEpisode]:
        """All episodes with a step, one in memory at a time."""

    def count(self, reason: str, number: int = 1) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + number


def opened(path: Path) -> h5py.File:
    """A file to read. Raises UserError for what is no HDF5."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path} cannot be read as HDF5: {error}") from error


def array_spec(array: h5py.Dataset) -> ArraySpec:
    """The spec of an array of one row for each step; float64 becomes float32."""
    dtype = array.dtype
    if dtype.kind not in "fiub":
        raise UserError(f"{array.name} in {array.file.filename} has dtype {dtype}; mpirl has numbers only")
    return ArraySpec(array.shape[1:], "float32" if dtype == np.float64 else dtype)


def extras_of(infos: h5py.Group, specs: Specs, source: Source, rows: Collection[int]) -> dict[str, tuple[str, ArraySpec]]:
    """The infos that are numbers of every step, by their names in an archive. rows: so many they may have."""
    taken = {*Layout(specs, 1).table(), *OWN_NAMES}
    extras: dict[str, tuple[str, ArraySpec]] = {}

    def visit(path: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Group) or path in LOG_PROB:
            return
        if item.dtype.kind in "fiub" and item.shape and len(item) in rows:
            name = path.replace("/", ".")
            extras[f"info_{name}" if name in taken or name.startswith("observation") else name] = path, array_spec(item)
        else:
            source.count(f"infos left out that are no numbers of every step, such as {path}")

    if isinstance(infos, h5py.Group):
        infos.visititems(visit)
    return extras


def info_values(info: Any, spec: ArraySpec, length: int) -> np.ndarray:
    """[length + 1, ...]; where the info of the last observation, or all, is missing: nan, or 0 of whole numbers."""
    values = np.full((length + 1, *spec.shape), np.nan if np.dtype(spec.dtype).kind == "f" else 0, spec.dtype)
    found = None if info is None or isinstance(info, h5py.Group) else info[:]
    if found is not None and found.shape[1:] == spec.shape and length <= len(found) <= length + 1:
        values[: len(found)] = found
    return values


def log_prob_values(infos: list[Any], length: int) -> np.ndarray:
    """[length] of the first of these infos that is there; nan where none is."""
    known = [info[:] for info in infos if info is not None]
    values = np.full(length, np.nan, np.float32)
    if known and length <= len(known[0]) <= length + 1:
        values[:] = known[0].reshape(len(known[0]), -1)[:length, 0]
    return values
