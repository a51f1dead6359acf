"""What archives hold for offline learning, found out before any observation is read: their segments and their episodes."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpirl.archive.reader import Segment, segments
from mpirl.errors import UserError
from mpirl.specs import Specs

LONGEST_WINDOW = 128
"""Steps: longer iterations are cut, so that the steps of a batch come from many places."""


@dataclass(frozen=True)
class Part:
    """One segment. archive: the number of its archive. iterations: int64 [I]. steps, context: of its layout."""

    archive: int
    path: Path
    iterations: np.ndarray
    num_lanes: int
    steps: int
    context: int


@dataclass(frozen=True)
class Survey:
    """Archives of the same specs. header: of the latest segment.

    episodes: columns [E] of all finished episodes: `archive` (its number), `id`, `return`, `length`, `task` ("" where the
    archive names none); sorted by archive and id.
    """

    archives: tuple[Path, ...]
    parts: tuple[Part, ...]
    specs: Specs
    header: Mapping[str, Any]
    episodes: Mapping[str, np.ndarray]

    @property
    def steps(self) -> int:
        """T of the windows that the archives are cut into."""
        return min(LONGEST_WINDOW, *(part.steps for part in self.parts))

    def rows(self, archive: int, ids: np.ndarray) -> np.ndarray:
        """Where episodes stand in the table, int64 of the shape of `ids`; -1 for those that were not finished."""
        first, last = np.searchsorted(self.episodes["archive"], [archive, archive + 1])
        known = self.episodes["id"][first:last]
        if not len(known):
            return np.full(ids.shape, -1, np.int64)
        place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        return np.where(known[place] == ids, first + place, -1)


def find_archives(places: str | Sequence[str]) -> tuple[Path, ...]:
    """The archives at these places: folders of segments, folders of runs, or patterns of either. Each is there once."""
    found: dict[Path, None] = {}
    for place in [places] if isinstance(places, str) else list(places):
        matches = sorted(glob.glob(place)) if glob.has_magic(place) else [place]
        for path in map(Path, matches):
            inside = path / "archive" if (path / "archive").is_dir() else path
            if inside.is_dir() and segments(inside):
                found[inside.resolve()] = None
            elif not glob.has_magic(place):
                raise UserError(f"no archive at {place}: give the folder of a run, or the one that holds 000000.h5 and so on")
        if not matches or not found:
            raise UserError(f"no archive matches {place}: give folders of runs, or those that hold 000000.h5 and so on")
    return tuple(found)


def survey(places: str | Sequence[str], alive: Any = lambda: None) -> Survey:
    """Look at the archives' segments and episode tables. alive() is called now and then."""
    archives = find_archives(places)
    parts, tables, first, header = [], [], None, {}
    for number, archive in enumerate(archives):
        for path in segments(archive):
            with Segment(path) as segment:
                first = first or (segment.layout.specs, path)
                _check(segment, *first)
                header = segment.header
                parts.append(_part(segment, number))
                tables.append(_table(segment, number))
            alive()
    assert first is not None, "an archive has segments"
    return Survey(archives, tuple(parts), first[0], header, _sorted(tables))


def _check(segment: Segment, specs: Specs, place: Path) -> None:
    if segment.layout.specs != specs:
        raise UserError(
            f"{segment.path} and {place} are archives of different emulators: {segment.layout.specs} against {specs}; "
            "learn from archives of equal specs"
        )
    for name in specs.observation:
        if segment.part(name, slice(0, 0), slice(None)) is None:
            raise UserError(
                f"{segment.path} holds no observations (archive.content=actions): have `python -m mpirl.replay` play the "
                "episodes again into an archive that does"
            )


def _part(segment: Segment, number: int) -> Part:
    num_lanes = segment.part("step_type", slice(0, 1), slice(None)).shape[1]
    return Part(number, segment.path, segment.iterations, num_lanes, segment.layout.steps, segment.layout.context)


def _table(segment: Segment, number: int) -> dict[str, np.ndarray]:
    columns = {name: segment.column(name) for name in ("id", "return", "length")}
    count = len(columns["id"])
    return columns | {"archive": np.full(count, number), "task": _tasks(segment, count)}


def _tasks(segment: Segment, count: int) -> np.ndarray:
    try:
        return segment.column("task").astype(str)
    except KeyError:  # older than this column
        return np.full(count, "")


def _sorted(tables: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    whole = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    order = np.lexsort((whole["id"], whole["archive"]))
    return {name: column[order] for name, column in whole.items()}
