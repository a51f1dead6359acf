"""Stretches: what one lane can play again, from a seed point on. Found by a look at the small fields of an archive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mpirl.archive.reader import Segment, segments
from mpirl.errors import UserError
from mpirl.specs import StepType
from mpirl.trajectory import NO_SEED

BLOCK = 64  # iterations whose small fields are read at once
BLOCK_BYTES = 4 << 20  # of one lane's fields, read at once
STEPS = 20_000  # a stretch of so many steps ends at its next seed point


@dataclass(frozen=True)
class Piece:
    """Iterations of one segment, by their indices first .. last - 1."""

    path: Path
    first: int
    last: int


@dataclass(frozen=True)
class Stretch:
    """One lane from the seed point at observation `start` of its first iteration to observation `stop` of its last.

    Nothing is missing in between, and there may be more seed points. Its episodes are ids first_id, first_id + num_lanes, ...
    up to last_id. steps: true ones.
    """

    lane: int
    num_lanes: int
    pieces: tuple[Piece, ...]
    start: int
    stop: int
    first_id: int
    last_id: int
    steps: int = 0

    @property
    def ids(self) -> range:
        return range(self.first_id, self.last_id + 1, self.num_lanes)

    def extended(self, piece: Piece, stop: int, steps: int, last_id: int) -> Stretch:
        """The stretch that goes on to observation `stop` of the one iteration in `piece`, by so many true steps."""
        last = self.pieces[-1]
        if last.path == piece.path:
            pieces = (*self.pieces[:-1], replace(last, last=piece.last))
        else:
            pieces = (*self.pieces, piece)
        return replace(self, pieces=pieces, stop=stop, steps=self.steps + steps, last_id=last_id)

    def iterations(self, names: Collection[str]) -> Iterator[LaneIteration]:
        """The iterations in order, with those of the fields `names` that are archived; a few are in memory at a time."""
        num_left = sum(piece.last - piece.first for piece in self.pieces)
        start = self.start
        for piece in self.pieces:
            with Segment(piece.path) as segment:
                for index, iteration, arrays in _read(segment, piece, self.lane, names):
                    num_left -= 1
                    stop = segment.layout.steps if num_left else self.stop
                    yield LaneIteration(segment, iteration, arrays, start, stop)
                    start = 0


@dataclass(frozen=True)
class LaneIteration:
    """One lane in one iteration: `arrays` by field without the axes I and N. Observations start .. stop are the stretch's."""

    segment: Segment
    iteration: int
    arrays: dict[str, np.ndarray]
    start: int
    stop: int


def _read(
    segment: Segment, piece: Piece, lane: int, names: Collection[str]
) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
    """Index, number and fields of a lane's iterations, read in blocks of about BLOCK_BYTES."""
    table = segment.layout.table()
    size = max(1, BLOCK_BYTES // max(1, sum(table[name].nbytes for name in names if name in table)))
    for first in range(piece.first, piece.last, size):
        block = slice(first, min(first + size, piece.last))
        parts = {name: segment.part(name, block, lane) for name in names}
        for index, iteration in enumerate(segment.iterations[block].tolist()):
            yield first + index, iteration, {name: part[index] for name, part in parts.items() if part is not None}


@dataclass
class Survey:
    """Where an archive can be played again.

    unplayable: true steps that cannot, by the reason; unplayable_ids: their episodes. under_way: episodes that the archive's
    end cuts off. versions: item -> values, of those who wrote it.
    """

    stretches: list[Stretch] = field(default_factory=list)
    unplayable: Counter[str] = field(default_factory=Counter)
    unplayable_ids: dict[int, str] = field(default_factory=dict)
    under_way: int = 0
    versions: dict[str, set[str]] = field(default_factory=dict)


def survey(directory: Path, longest: int = STEPS, alive: Callable[[], None] = lambda: None) -> Survey:
    """Find an archive's stretches. They end at the first seed point after `longest` steps. alive is called at every segment."""
    paths = segments(directory)
    if not paths:
        raise UserError(f"no archive at {directory}: it holds no closed segment (000000.h5 and so on)")
    found = Survey()
    surveyor = _Surveyor(found, longest)
    for path in paths:
        alive()
        with Segment(path) as segment:
            for name, version in (segment.header.get("versions") or {}).items():
                found.versions.setdefault(name, set()).add(str(version))
            surveyor.take(segment)
    surveyor.finish()
    return found


class _Surveyor:
    """Follows every lane from iteration to iteration."""

    def __init__(self, found: Survey, longest: int):
        self._found, self._longest = found, longest
        self._open: dict[int, Stretch] = {}  # by lane
        self._before = 0  # the iteration before, 0 at first
        self._ends = np.zeros(0, np.int64)  # its last observation's episode in every lane
        self._end_types = np.zeros(0, np.uint8)
        self._reason = ""  # why a lane that has no open stretch cannot be played

    def take(self, segment: Segment) -> None:
        for first in range(0, len(segment.iterations), BLOCK):
            block = slice(first, first + BLOCK)
            fields = [segment.part(name, block, slice(None)) for name in ("step_type", "episode", "seed")]
            for index, iteration in enumerate(segment.iterations[block].tolist()):
                piece = Piece(segment.path, first + index, first + index + 1)
                self._iteration(piece, iteration, *(part[index] for part in fields))

    def finish(self) -> None:
        self._found.under_way = int(np.count_nonzero(self._end_types != StepType.LAST))
        for lane in list(self._open):
            self._close(lane)

    def _iteration(self, piece: Piece, iteration: int, step_type: np.ndarray, episode: np.ndarray, seed: np.ndarray) -> None:
        """Take in the fields [N, T+1] of one iteration."""
        num_lanes, T = len(step_type), step_type.shape[1] - 1
        follows = iteration == self._before + 1 and num_lanes == len(self._ends)
        continues = episode[:, 0] == self._ends if follows else np.zeros(num_lanes, bool)
        for lane in [lane for lane in self._open if lane >= num_lanes or not continues[lane]]:
            self._close(lane)
        if iteration > self._before + 1:
            self._reason = f"no seed point since the missing iterations {self._before + 1} to {iteration - 1}"
        elif not continues.all():
            self._reason = f"no seed point at the beginning of iteration {iteration}"
        is_step = step_type[:, :-1] != StepType.LAST
        for lane in range(num_lanes):
            # Observation 0 repeats the last one of the iteration before, its seed included.
            marks = [t for t in np.flatnonzero(seed[lane] != NO_SEED).tolist() if t > 0 or not continues[lane]]
            self._lane(piece, lane, num_lanes, marks, is_step[lane], episode[lane])
        self._before, self._ends, self._end_types = iteration, episode[:, T].copy(), step_type[:, T].copy()

    def _lane(
        self, piece: Piece, lane: int, num_lanes: int, marks: list[int], is_step: np.ndarray, episode: np.ndarray
    ) -> None:
        """Take in one lane of an iteration, with seed points at the observations `marks`."""
        start, T = 0, len(is_step)
        for stop in dict.fromkeys([*marks, T]):
            steps, is_mark = int(np.count_nonzero(is_step[start:stop])), stop in marks
            now = self._open.get(lane)
            if now:
                now = self._open[lane] = now.extended(piece, stop, steps, int(episode[stop - 1 if is_mark else stop]))
            elif stop > start:
                self._found.unplayable[self._reason] += steps
                self._found.unplayable_ids.update(dict.fromkeys(episode[start:stop].tolist(), self._reason))
            if is_mark and (now is None or now.steps >= self._longest):
                self._close(lane)
                first_id = int(episode[stop])
                self._open[lane] = Stretch(lane, num_lanes, (piece,), stop, stop, first_id, first_id)
            start = stop

    def _close(self, lane: int) -> None:
        if lane in self._open:
            self._found.stretches.append(self._open.pop(lane))
