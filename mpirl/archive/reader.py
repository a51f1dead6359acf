"""Reads closed segments back: layouts, trajectories and episode tables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from mpirl.archive.format import (
    EPISODE_COLUMNS,
    EPISODE_DEFAULTS,
    FORMAT,
    FORMAT_VERSION,
    layout_from_attributes,
    load_zstd,
    table_from_attributes,
)
from mpirl.errors import UserError
from mpirl.trajectory import Trajectory


def segments(directory: str | Path) -> list[Path]:
    """The closed segments of an archive, oldest first. What a killed writer left half-written is not among them."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"no archive at {directory}: give the folder that holds 000000.h5 and so on")
    closed = [path for path in directory.iterdir() if re.fullmatch(r"\d{6,}\.h5", path.name)]
    return sorted(closed, key=lambda path: int(path.stem))


def read_archive(directory: str | Path) -> Iterator[tuple[int, int, Trajectory]]:
    """Every iteration of an archive in order, as (iteration, learner version, batch)."""
    paths = segments(directory)
    if not paths:
        raise UserError(f"no archive at {directory}: it holds no closed segment (000000.h5 and so on)")
    for path in paths:
        with Segment(path) as segment:
            for index, (iteration, version) in enumerate(zip(segment.iterations, segment.learner_versions)):
                yield int(iteration), int(version), segment.trajectory(index)


class Segment:
    """One closed segment, open for reading; a context manager.

    `iterations` and `learner_versions` are int64 [I]; `layout` and `header` are those that the writer was given. `fields`
    are those of the layout's table that are stored; `content` is "all", or "actions" where observations are not.
    `keeping` says by what rules iterations are missing.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file = _open(self.path)
        attributes = self._file.attrs
        try:
            _check_format(self.path, attributes)
            self.compression: str = attributes["compression"]
            if self.compression == "zstd":
                load_zstd()
            self.content = str(attributes.get("content", "all"))
            self.layout = layout_from_attributes(attributes)
            self._table = table_from_attributes(attributes)
            self.fields = tuple(self._table)
            self.num_lanes = int(self._file["step_type"].shape[1])
            self.keeping: dict[str, Any] = json.loads(attributes.get("keeping", "{}"))
            self.header: dict[str, Any] = json.loads(attributes["header"])
            self.created = str(attributes["created"])  # ISO 8601, UTC
            self.iterations: np.ndarray = self._file["iteration"][:]
            self.learner_versions: np.ndarray = self._file["learner_version"][:]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Segment:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def trajectory(self, index: int) -> Trajectory:
        """The batch of iteration `iterations[index]`, read from disk. Raises UserError where only actions are stored."""
        if self.content == "actions":
            raise UserError(
                f"{self.path} holds no observations (archive.content=actions): bring them back with "
                f"`python -m mpirl.replay {self.path.parent} restore -o FOLDER`, then read the archive in FOLDER"
            )
        table = self.layout.table()
        if table != self._table:
            by = self._file.attrs["mpirl_version"]
            raise UserError(f"{self.path} has the field table of mpirl {by}: read it with that version, or with plain h5py")
        return Trajectory(self.layout, {name: self._file[name][index] for name in table})

    def part(self, name: str, iterations: int | slice, lanes: int | slice) -> np.ndarray | None:
        """A piece of one field, [iterations, lanes, ...] without the axes of plain indices; None if it is not archived."""
        return self._file[name][iterations, lanes] if name in self._file else None

    def column(self, name: str) -> np.ndarray:
        """One column of the episode table; defaults where the segment is older than the column."""
        group = self._file["episodes"]
        if name in EPISODE_DEFAULTS and name not in group:
            return np.full(len(group["id"]), EPISODE_DEFAULTS[name], object if EPISODE_COLUMNS[name] == "str" else np.int64)
        column = group[name]
        return column.asstr()[:] if column.dtype.kind == "O" else column[:]

    def episodes(self) -> list[dict[str, Any]]:
        """The episodes that ended in this segment, in the order of their ends; the keys are EPISODE_COLUMNS."""
        columns = [self.column(name) for name in EPISODE_COLUMNS]
        return [dict(zip(EPISODE_COLUMNS, row)) for row in zip(*(column.tolist() for column in columns))]


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path} is not a segment of an mpirl archive: {error}") from error


def _check_format(path: Path, attributes: h5py.AttributeManager) -> None:
    if attributes.get("format") != FORMAT:
        raise UserError(f"{path} is HDF5, but not a segment of an mpirl archive: it lacks the attribute format={FORMAT!r}")
    version = int(attributes["format_version"])
    if version > FORMAT_VERSION:
        by = attributes["mpirl_version"]
        raise UserError(
            f"{path} has archive format {version}, this mpirl reads up to {FORMAT_VERSION}: upgrade mpirl to {by} or later"
        )
