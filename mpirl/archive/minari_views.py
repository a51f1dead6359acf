"""Episodes as views: HDF5 virtual datasets over the segments, in the places where Minari looks for them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpirl.archive.minari_metadata import observation_paths
from mpirl.archive.whole_episodes import Part, Piece, WholeEpisode, WholeEpisodes
from mpirl.trajectory import NO_SEED

LIBVER = ("v110", "v110")  # the first that has views; small groups take little room in it


def views_file(found: WholeEpisodes, folder: Path, progress: Callable[[int, int], None]) -> bytes:
    """A file of views, made in memory; `folder` is where it will lie."""
    maker = _Maker(found, folder)
    with h5py.File(f"{folder}/views", "w", driver="core", backing_store=False, track_order=True, libver=LIBVER) as file:
        for index, episode in enumerate(found.episodes):
            maker.write(file.create_group(f"episode_{index}"), index, episode)
            progress(episode.length, found.steps)
        file.flush()
        return file.id.get_file_image()


class _Maker:
    """Writes episodes as virtual datasets over the segments, which are named relative to `folder`."""

    def __init__(self, found: WholeEpisodes, folder: Path):
        self._layout, self._folder = found.layout, folder
        self._paths = observation_paths(found.layout.specs.observation)
        self._extras = {**found.layout.specs.extras, **found.layout.extras}
        self._sources: dict[tuple[Path, str], h5py.VirtualSource] = {}

    def write(self, group: h5py.Group, index: int, episode: WholeEpisode) -> None:
        row, length = episode.row, episode.length
        # One attribute for the row: beyond eight, each episode would take 2 kB more.
        group.attrs.update({"id": index, "total_steps": length, "return": row["return"], "mpirl": json.dumps(row)})
        if row["seed"] != NO_SEED:
            group.attrs["seed"] = row["seed"]
        for name, path in self._paths.items():
            self._view(group, path, episode, name, length + 1)
        self._view(group, "actions", episode, "action", length)
        self._view(group, "rewards", episode, "reward", length)
        ends = np.arange(length) == length - 1
        group["terminations"] = ends & (row["reason"] == "terminated")
        group["truncations"] = ends & (row["reason"] != "terminated")
        infos = group.create_group("infos")
        for name in self._extras:
            self._view(infos, name, episode, name, length + 1)
        self._view(infos, "log_prob", episode, "log_prob", length + 1)  # nan at the last observation, as there is no action

    def _view(self, group: h5py.Group, path: str, episode: WholeEpisode, name: str, length: int) -> None:
        """A view of `length` values of a field; what is mapped to nothing, or to a segment that is gone, reads as the fill."""
        field = self._layout.table()[name]
        layout = h5py.VirtualLayout((length, *field.shape[1:]), field.dtype)
        place, is_by_step = 0, name in ("action", "reward", "log_prob")
        for piece in episode.pieces:
            is_last = piece is episode.pieces[-1] and not is_by_step
            offset = piece.part.layout.context if name in self._paths else 0
            source = self._source(piece.part, name)
            for iterations, first, stop in _slabs(piece, is_last):
                count = (iterations.stop - iterations.start) * (stop - first)
                layout[place : place + count] = source[iterations, piece.lane, offset + first : offset + stop]
                place += count
        assert place in (length, length - (name == "log_prob")), f"{name} of episode {episode.row}: {place} of {length}"
        group.create_virtual_dataset(path, layout, fillvalue=_fill(np.dtype(field.dtype)))

    def _source(self, part: Part, name: str) -> h5py.VirtualSource:
        if (part.path, name) not in self._sources:
            field = part.layout.table()[name]
            shape = (part.num_iterations, part.num_lanes, *field.shape)
            path = os.path.relpath(part.path, self._folder)
            self._sources[part.path, name] = h5py.VirtualSource(path, name, shape, field.dtype)
        return self._sources[part.path, name]


def _slabs(piece: Piece, with_last: bool) -> Iterator[tuple[slice, int, int]]:
    """A piece's slots as few blocks (iterations, first slot, stop). with_last: with the observation after the last step."""
    T = piece.part.layout.steps
    index, start = divmod(piece.start, T)
    last, end = divmod(piece.stop - 1, T)
    if index < last and start:
        yield slice(index, index + 1), start, T
        index, start = index + 1, 0
    if index < last:
        yield slice(index, last), 0, T
        start = 0
    yield slice(last, last + 1), start, end + 1 + with_last


def _fill(dtype: np.dtype) -> Any:
    return np.array(np.nan if dtype.kind == "f" else -1).astype(dtype)
