"""Observations brought back: an archive of actions is played again, checked, and written with what the emulators show."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mpirl.archive.reader import Segment, segments
from mpirl.archive.writer import SegmentWriter
from mpirl.errors import UserError
from mpirl.recording import SLOTS
from mpirl.reemulation import Comparison, Divergence, Emulators
from mpirl.specs import StepType
from mpirl.stretches import LaneIteration
from mpirl.trajectory import NO_SEED, Layout, Trajectory, is_step


@dataclass
class Restored:
    """What was written. unplayable: true steps that became seams, as no seed point comes before them in the archive."""

    iterations: int = 0
    steps: int = 0
    episodes: int = 0
    unplayable: int = 0


def restore(
    archive: Path,
    target: Path,
    compression: str = "gzip",
    alive: Callable[[int], None] = lambda steps: None,
) -> Restored:
    """Play the archive again and write it to `target`, a new folder, with observations and context frames.

    Every reward, discount and end of an episode is compared with the archive. What the archive holds beside them is copied;
    of what it lacks, the emulators' extras come back, log_prob is nan, and the algorithm's extras and the recurrent state
    are left out. alive is called after every iteration with its steps. Raises UserError at a divergence, and leaves nothing.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists: name a new folder for the archive")
    restorer = _Restorer(target, compression)
    try:
        with restorer:
            for path in segments(archive):
                with Segment(path) as segment:
                    for steps in restorer.take(segment):
                        alive(steps)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return restorer.done


class _Restorer(ExitStack):
    """Takes segments in order; a context manager."""

    def __init__(self, target: Path, compression: str):
        super().__init__()
        self.done = Restored()
        self._target, self._compression = target, compression
        self._writer: SegmentWriter | None = None
        self._kind: tuple[Layout, int, Mapping[str, Any]] | None = None  # of the segments that the writer takes
        self._lanes: list[_Lane] = []
        self._before = 0  # the iteration before
        self.callback(self._close_writer)

    def take(self, segment: Segment) -> Iterator[int]:
        """Restore a segment; the steps of every iteration."""
        layout = _layout(segment)
        kind = (layout, segment.num_lanes, segment.header)
        if kind != self._kind:
            self._begin(kind)
        rows = segment.episodes()
        for index, iteration in enumerate(segment.iterations.tolist()):
            of_iteration = [row for row in rows if row["end_iteration"] == iteration]
            yield self._iteration(segment, index, iteration, layout, of_iteration)
        assert self._writer is not None
        self._writer.flush()  # segments of the same iterations

    def _begin(self, kind: tuple[Layout, int, Mapping[str, Any]]) -> None:
        self._close_writer()
        layout, num_lanes, header = self._kind = kind
        settings = {"segment_seconds": float("inf")}
        self._writer = SegmentWriter(self._target, layout, header, self._compression, **settings)
        for lane in range(len(self._lanes), num_lanes):
            self._lanes.append(_Lane(lane, self.enter_context(Emulators())))
        del self._lanes[num_lanes:]

    def _iteration(
        self, segment: Segment, index: int, iteration: int, layout: Layout, rows: Sequence[Mapping[str, Any]]
    ) -> int:
        stored = {name: segment.part(name, index, slice(None)) for name in segment.fields if name in layout.table()}
        batch = Trajectory.allocate(layout, segment.num_lanes)
        batch["log_prob"][...] = np.nan
        for name, array in stored.items():
            batch[name][...] = array
        starts = []
        for lane, player in enumerate(self._lanes):
            part = LaneIteration(segment, iteration, {name: array[lane] for name, array in stored.items()}, 0, layout.steps)
            starts.append(player.play(part, iteration == self._before + 1, {name: batch[name][lane] for name in batch}))
        kept = [row for row in rows if row["end_step"] > starts[row["lane"]]]
        assert self._writer is not None
        self._writer.write(iteration, int(segment.learner_versions[index]), batch, kept)
        self._before = iteration
        return self._count(batch, stored["step_type"], len(kept))

    def _count(self, batch: Trajectory, step_type: np.ndarray, num_episodes: int) -> int:
        steps, all_steps = (int(np.count_nonzero(is_step(types))) for types in (batch["step_type"], step_type))
        self.done.iterations += 1
        self.done.steps += steps
        self.done.episodes += num_episodes
        self.done.unplayable += all_steps - steps
        return all_steps

    def _close_writer(self) -> None:
        if self._writer:
            self._writer.close()


@dataclass
class _Lane:
    """One lane, followed from iteration to iteration."""

    lane: int
    emulators: Emulators
    player: Comparison | None = None
    last_id: int = -1  # of the episode that the last observation belongs to

    def play(self, part: LaneIteration, follows: bool, out: Mapping[str, np.ndarray]) -> int:
        """Play an iteration and fill `out`, its fields; the first observation that was played, T + 1 if there is none."""
        segment, T = part.segment, part.stop
        if self.player is None or not follows or part.arrays["episode"][0] != self.last_id:
            self.player = Comparison(self.emulators.like(segment, self.lane), self.lane, segment.layout, None)
        self.last_id = int(part.arrays["episode"][-1])
        marks = np.flatnonzero(part.arrays["seed"] != NO_SEED)
        start = 0 if self.player.is_playing else int(marks[0]) if len(marks) else T + 1
        if start <= T:
            self.player.take(part)
        if self.player.tally.divergences:
            raise _diverged(self.player.tally.divergences[0])
        self._fill(out, start, T)
        return start

    def _fill(self, out: Mapping[str, np.ndarray], start: int, T: int) -> None:
        """Take observations start .. T as they were played; what is before them becomes seams."""
        assert self.player is not None
        for name, played in self.player.played.items():
            if name not in SLOTS and start <= T:  # those are stored, and have been compared
                first = start + len(out[name]) - (T + 1) if start else 0  # behind the context, or with it
                out[name][first:] = played[first:]
        out["step_type"][:start] = StepType.LAST
        for name, nothing in {"reward": 0, "action": 0, "discount": 1}.items():
            out[name][:start] = nothing


def _layout(segment: Segment) -> Layout:
    """That of the archive, without those of its fields that neither it nor an emulator has."""
    layout, stored = segment.layout, set(segment.fields)
    extras = {name: spec for name, spec in layout.extras.items() if name in stored}
    return replace(layout, core=layout.core if "core" in stored else 0, extras=extras)


def _diverged(found: Divergence) -> UserError:
    return UserError(
        f"cannot restore: played again, episode {found.episode} is another at step {found.step}: {found.field} is "
        f"{found.played}, {found.stored} in {found.segment}; `verify` tells more, and whether other versions made the archive"
    )
