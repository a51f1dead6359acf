"""Where the whole episodes of an archive lie: pieces of lanes, found by a look at the small fields."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mpirl.archive.reader import Segment, segments
from mpirl.errors import UserError
from mpirl.specs import ArraySpec, StepType
from mpirl.trajectory import Layout


@dataclass(frozen=True)
class Part:
    """One segment."""

    path: Path
    layout: Layout
    num_iterations: int
    num_lanes: int
    compression: str


@dataclass(frozen=True)
class Piece:
    """True steps of one lane of a segment, start .. stop - 1; slot t of the segment's i-th iteration counts as i * T + t."""

    part: Part
    lane: int
    start: int
    stop: int


@dataclass(frozen=True)
class WholeEpisode:
    """An episode all of whose steps are there. row: of the episode table. pieces: in order."""

    row: Mapping[str, Any]
    pieces: tuple[Piece, ...]

    @property
    def length(self) -> int:
        return int(self.row["length"])


@dataclass(frozen=True)
class WholeEpisodes:
    """The whole episodes of an archive in the order of their ids.

    layout: what all segments have in common. header: of the latest segment. left_out: episodes, begun or ended in the
    archive, of which steps are missing. steps: of the whole ones.
    """

    archive: Path
    parts: tuple[Part, ...]
    layout: Layout
    header: Mapping[str, Any]
    episodes: tuple[WholeEpisode, ...]
    left_out: int
    steps: int


def find_whole_episodes(archive: Path) -> WholeEpisodes:
    """Look through the closed segments. Raises UserError if there is no whole episode, or none with observations."""
    paths = segments(archive)
    parts: list[Part] = []
    pieces: defaultdict[int, list[Piece]] = defaultdict(list)
    rows: dict[int, Mapping[str, Any]] = {}
    header: Mapping[str, Any] = {}
    for path in paths:
        with Segment(path) as segment:
            fields = [segment.part(name, slice(None), slice(None)) for name in ("step_type", "episode")]
            part = Part(path, segment.layout, *fields[0].shape[:2], segment.compression)
            _check(segment, [*parts, part][0])
            for id, piece in _pieces(part, *fields):
                pieces[id].append(piece)
            rows.update((row["id"], row) for row in segment.episodes())
            header = segment.header
            parts.append(part)
    whole = [id for id in sorted(rows) if sum(piece.stop - piece.start for piece in pieces[id]) == rows[id]["length"]]
    if not whole:
        raise UserError(f"no whole episode in the {len(paths)} closed segments of {archive}: nothing to export")
    episodes = tuple(WholeEpisode(rows[id], tuple(pieces[id])) for id in whole)
    steps = sum(episode.length for episode in episodes)
    return WholeEpisodes(archive, tuple(parts), _common(parts), header, episodes, len(pieces) - len(whole), steps)


def _check(segment: Segment, first: Part) -> None:
    """Refuse segments that do not fit the first one."""
    specs, others = segment.layout.specs, first.layout.specs
    if (specs.observation, specs.action) != (others.observation, others.action):
        raise UserError(f"{segment.path} and {first.path} have different specs: {specs} and {others}; one dataset has one")
    for name in specs.observation:
        if segment.part(name, slice(0, 0), slice(None)) is None:
            raise UserError(
                f"{segment.path} holds no observations (archive.content=actions), and a dataset for other tools needs them: "
                "export an archive of archive.content=all"
            )


def _pieces(part: Part, step_type: np.ndarray, episode: np.ndarray) -> Iterator[tuple[int, Piece]]:
    """The episodes' pieces in a segment, with their ids. step_type, episode: [I, N, T+1]."""
    is_step = np.moveaxis(step_type[..., :-1] != StepType.LAST, 1, 0).reshape(part.num_lanes, -1)  # [N, I * T]
    ids = np.moveaxis(episode[..., :-1], 1, 0).reshape(part.num_lanes, -1)
    for lane in range(part.num_lanes):
        slots = np.flatnonzero(is_step[lane])
        breaks = np.flatnonzero((np.diff(slots) != 1) | (np.diff(ids[lane, slots]) != 0)) + 1
        for run in np.split(slots, breaks):
            if len(run):
                yield int(ids[lane, run[0]]), Piece(part, lane, int(run[0]), int(run[-1]) + 1)


def _common(parts: Sequence[Part]) -> Layout:
    """The last layout with the extras that all have."""
    layouts = [part.layout for part in parts]

    def shared(extras: Mapping[str, ArraySpec], all_extras: Sequence[Mapping[str, ArraySpec]]) -> dict[str, ArraySpec]:
        return {name: spec for name, spec in extras.items() if all(other.get(name) == spec for other in all_extras)}

    last = layouts[-1]
    specs = replace(last.specs, extras=shared(last.specs.extras, [layout.specs.extras for layout in layouts]))
    return replace(last, specs=specs, extras=shared(last.extras, [layout.extras for layout in layouts]))
