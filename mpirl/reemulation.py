"""Re-emulation: a lane played again from its seed points and actions, and compared bit for bit with what is archived."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpirl.archive.reader import Segment
from mpirl.emulators.base import EmulatorBatch
from mpirl.emulators.lanes import make_emulator
from mpirl.errors import UserError
from mpirl.recording import SLOTS, EpisodeTable, Reason, Recording, described, differing
from mpirl.rules import joined
from mpirl.specs import ArraySpec, Specs, StepType
from mpirl.stretches import LaneIteration, Stretch
from mpirl.trajectory import NO_SEED, Layout


@dataclass(frozen=True, order=True)
class Divergence:
    """Where the archive and the emulator part. The earliest compares as the least.

    t: on the field's time axis in the iteration. step: of the episode, whose first is 0. stored, played: values in words.
    """

    iteration: int
    t: int
    lane: int
    episode: int
    step: int
    field: str
    stored: str
    played: str
    segment: str


@dataclass
class Tally:
    """What was found equal: whole episodes, true steps. divergences: at most one after each seed point."""

    episodes: int = 0
    steps: int = 0
    divergences: list[Divergence] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.episodes += other.episodes
        self.steps += other.steps
        self.divergences += other.divergences


class Emulators:
    """One-lane emulators like those that played the archive's lanes, kept for further stretches; a context manager.

    changes: what is to be other in an emulator's config node, for pictures, say.
    """

    def __init__(self, changes: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda node: {}):
        self._changes = changes
        self._made: dict[str, EmulatorBatch] = {}

    def like(self, segment: Segment, lane: int) -> EmulatorBatch:
        """The emulator of a lane of the segment. Raises UserError where it cannot be made."""
        node = emulator_node(segment.header, lane)
        key = json.dumps(node, sort_keys=True)
        if key not in self._made:
            self._made[key] = make_emulator({"emulator": node}, 1, self._changes(node))
        return self._made[key]

    def __enter__(self) -> Emulators:
        return self

    def __exit__(self, *error: object) -> None:
        for emulator in self._made.values():
            emulator.close()
        self._made.clear()


def emulator_node(header: Mapping[str, Any], lane: int) -> dict[str, Any]:
    """The config node of a lane's emulator, with what was other on the rank that played it."""
    if "emulator" not in header["config"]:
        raise UserError("these episodes were imported: no emulator is known that could play them again")
    rank, changes = header["lane_rank"][lane], header.get("rank_emulator") or []
    return joined(header["config"]["emulator"], changes[rank] if rank < len(changes) else {})


def verify(
    stretch: Stretch,
    emulators: Emulators,
    chosen: Collection[int] | None = None,
    alive: Callable[[int], None] = lambda steps: None,
) -> Tally:
    """Play a stretch again and compare; after a divergence go on at the next seed point.

    chosen: ids of the episodes that are compared, None for all. alive is called after every iteration, with its steps.
    """
    with Segment(stretch.pieces[0].path) as segment:
        layout, emulator = segment.layout, emulators.like(segment, stretch.lane)
        iteration = int(segment.iterations[stretch.pieces[0].first])
    stored, played = _words(layout.specs), _words(emulator.specs)
    if stored != played:
        where = (iteration, stretch.start, stretch.lane, stretch.first_id, 0)
        return Tally(divergences=[Divergence(*where, "specs", stored, played, str(stretch.pieces[0].path))])
    comparison = Comparison(emulator, stretch.lane, layout, chosen)
    last = math.inf if chosen is None else max((id for id in chosen if id in stretch.ids), default=-1)
    for part in stretch.iterations(comparison.fields):
        if part.arrays["episode"][part.start] > last:
            break
        comparison.take(part)
        alive(np.count_nonzero(part.arrays["step_type"][part.start : part.stop] != StepType.LAST))
    return comparison.tally


def _words(specs: Specs) -> str:
    arrays = {**specs.observation, "action": specs.action, **specs.extras}
    return ", ".join(f"{name} {spec.dtype} {list(spec.shape)}" for name, spec in sorted(arrays.items()))


class Comparison:
    """Plays the iterations of one stretch, one after the other; `tally` is what it found so far."""

    def __init__(self, emulator: EmulatorBatch, lane: int, layout: Layout, chosen: Collection[int] | None):
        self.tally = Tally()
        self._emulator, self._lane, self._action = emulator, lane, layout.specs.action
        self._recording = Recording(layout)
        self._compared = tuple(self._recording.arrays)  # of those that differ at the same moment, the first is told
        self.fields = (*self._compared, "action", "episode", "seed")
        self._chosen = None if chosen is None else np.array(sorted(chosen), np.int64)
        self._is_playing = False
        self._return = 0.0
        self._table = EpisodeTable(lane)

    @property
    def is_playing(self) -> bool:
        """Whether there was a seed point, and no divergence since."""
        return self._is_playing

    @property
    def played(self) -> dict[str, np.ndarray]:
        """The fields of the iteration taken last, without the axis of lanes: from the first observation played in it on."""
        return {name: array[0] for name, array in self._recording.arrays.items()}

    def take(self, part: LaneIteration) -> None:
        """Play and compare what the stretch has of an iteration."""
        start = part.start if self._is_playing else _next_seed(part, part.start)
        while start is not None:
            reached, refused = self._play(part, start)
            found, equal = self._compare(part, start, reached, refused)
            self._count(part, start, equal)
            if found is None:
                return
            if found not in self.tally.divergences:
                self.tally.divergences.append(found)
            self._is_playing = False
            start = _next_seed(part, max(start, equal) + 1)

    def _play(self, part: LaneIteration, start: int) -> tuple[int, Reason | None]:
        """Go on from observation `start`, or begin there with its seed. The last observation that was played, and the reason if
        the archive goes on after it."""
        recording, action, seed = self._recording, part.arrays["action"], part.arrays["seed"]
        t = start - 1
        try:
            if self._is_playing:
                recording.carry_over()
            else:
                self._is_playing, self._return = True, 0.0
                recording.begin(start)
                self._emulator.reset(seed[start : start + 1], recording.frames[start])
            for t in range(start, part.stop):
                if not is_possible(action[t], self._action):
                    return t, ("action", str(action[t]), f"the emulator has actions 0 to {self._action.num_values - 1}")
                self._emulator.step(action[t : t + 1], seed[t + 1 : t + 2], recording.frames[t + 1])
        except Exception as error:  # it went through once
            return t, ("action", "was played", f"{type(error).__name__}: {error}")
        return part.stop, None

    def _compare(self, part: LaneIteration, start: int, reached: int, refused: Reason | None) -> tuple[Divergence | None, int]:
        """The first divergence in observations start .. reached, if any, and the last observation before it."""
        self._recording.grow_older(start, max(start, reached))
        differences = [found for name in self._compared if (found := self._first_difference(part, name, start, reached))]
        found, equal = None, reached
        if differences:
            time, name, index = min(differences, key=lambda difference: difference[0])
            words = described(name, part.arrays[name][index], self._recording.arrays[name][0, index])
            found, equal = self._divergence(part, self._recording.time_axis(name, index), name, *words), time - 1
        elif refused:
            found = self._divergence(part, max(reached, start), *refused)
        return self._check_ends(part, start, equal) or (found, equal)

    def _first_difference(self, part: LaneIteration, name: str, start: int, reached: int) -> tuple[int, str, int] | None:
        """Where a field differs first: the observation it belongs to, its name, and the index in it."""
        if name not in part.arrays:
            return None
        first, times = self._recording.times(name, start, reached)
        window = slice(first, first + len(times))
        differ = differing(part.arrays[name][window], self._recording.arrays[name][0, window])
        differ &= self._is_chosen(part.arrays["episode"][times - (name in SLOTS)])
        hits = np.flatnonzero(differ)
        return (int(times[hits[0]]), name, first + int(hits[0])) if len(hits) else None

    def _check_ends(self, part: LaneIteration, start: int, equal: int) -> tuple[Divergence, int] | None:
        """Compare the episodes that end in observations start + 1 .. equal with the episode table."""
        played, begun = self._recording.arrays, start
        for t in (np.flatnonzero(played["step_type"][0, start + 1 : equal + 1] == StepType.LAST) + start + 1).tolist():
            self._return += played["reward"][0, begun:t].sum(dtype=np.float64)
            reason = "terminated" if played["discount"][0, t - 1] == 0 else "truncated"
            id, row = int(part.arrays["episode"][t]), (int(self._recording.age[t]), self._return, reason)
            found = self._table.difference(part.segment, id, row) if self._is_chosen(id) else None
            begun, self._return = t + 1, 0.0
            if found:
                return self._divergence(part, t, *found), t - 1
        self._return += played["reward"][0, begun:equal].sum(dtype=np.float64)
        return None

    def _divergence(self, part: LaneIteration, t: int, name: str, stored: str, played: str) -> Divergence:
        moment, path = max(t, 0), part.segment.path
        step, episode = int(self._recording.age[moment]), int(part.arrays["episode"][moment])
        return Divergence(part.iteration, t, self._lane, episode, step, name, stored, played, str(path))

    def _count(self, part: LaneIteration, start: int, equal: int) -> None:
        """Take observations start .. equal, and the steps between them, as verified."""
        types = self._recording.arrays["step_type"][0]
        chosen = np.broadcast_to(self._is_chosen(part.arrays["episode"]), len(types))
        is_last = types == StepType.LAST
        self.tally.steps += int(np.count_nonzero(~is_last[start:equal] & chosen[start:equal]))
        self.tally.episodes += int(np.count_nonzero(is_last[start + 1 : equal + 1] & chosen[start + 1 : equal + 1]))

    def _is_chosen(self, episode: Any) -> Any:
        return True if self._chosen is None else np.isin(episode, self._chosen)


def _next_seed(part: LaneIteration, start: int) -> int | None:
    """The first seed point from observation `start` on."""
    marks = np.flatnonzero(part.arrays["seed"][start : part.stop + 1] != NO_SEED)
    return start + int(marks[0]) if len(marks) else None


def is_possible(action: np.ndarray, spec: ArraySpec) -> bool:
    """Whether an emulator with this spec of its action has such an action."""
    return spec.num_values is None or 0 <= action < spec.num_values
