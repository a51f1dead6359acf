"""Windows: the pieces of T steps of one lane that archives are cut into, and the use that each of their steps has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from mpirl.archive.reader import Segment
from mpirl.archive.survey import Part, Survey
from mpirl.errors import UserError
from mpirl.specs import ArraySpec, StepType
from mpirl.trajectory import Layout

EXTRAS = {
    "use": ArraySpec((), "uint8"),
    "row": ArraySpec((), "int64"),
    "return_to_go": ArraySpec((), "float32"),
    "steps_to_go": ArraySpec((), "int32"),
}
"""What a window has for every observation beside the fields of the table; see algorithms.base.OfflineAlgorithm."""
SMALL = ("step_type", "episode", "reward")
LONG_AGO = 1 << 30


class Use(IntEnum):
    """What a step is for."""

    TRAINING = 0
    VALIDATION = 1
    UNFINISHED = 2
    LEFT_OUT = 3
    NO_CONTEXT = 4
    SEAM = 5


REASONS = {
    Use.VALIDATION: "held out for validation",
    Use.UNFINISHED: "of episodes that were not finished",
    Use.LEFT_OUT: "not chosen by the algorithm",
    Use.NO_CONTEXT: "without the frames before them",
}


@dataclass(frozen=True)
class Purpose:
    """What steps are used for. chosen: bool [E], the finished episodes to learn from; None: all, unfinished ones too.

    validation: the share of episodes held out. context: frames before an observation that the model looks at. gamma,
    reward_clip: of the returns to go.
    """

    chosen: np.ndarray | None = None
    validation: float = 0.1
    context: int = 0
    gamma: float = 1.0
    reward_clip: float | None = None


@dataclass(frozen=True)
class Unit:
    """One iteration of one segment, and its windows that hold steps to learn from or to validate with.

    index: of the iteration in the segment. lane, start: int64 [M], the windows. tail: float64 [N, 2], return and steps to
    go at each lane's last observation, nan if unknown.
    """

    part: Part
    index: int
    lane: np.ndarray
    start: np.ndarray
    tail: np.ndarray


@dataclass(frozen=True)
class Windows:
    """All windows of a survey. totals: true steps of the archives, int64 by Use; unread: those in windows that are not read."""

    survey: Survey
    purpose: Purpose
    units: tuple[Unit, ...]
    totals: np.ndarray
    unread: np.ndarray

    @property
    def count(self) -> int:
        return sum(len(unit.lane) for unit in self.units)


def find_windows(survey: Survey, purpose: Purpose, alive: Callable[[], None] = lambda: None) -> Windows:
    """Read the small fields of all segments, latest first, and find the windows worth reading. alive() is called at times."""
    units: list[Unit] = []
    totals, unread = np.zeros(len(Use), np.int64), np.zeros(len(Use), np.int64)
    following: tuple[Part, int, np.ndarray, np.ndarray] | None = None
    for part in reversed(survey.parts):
        with Segment(part.path) as segment:
            fields = {name: segment.part(name, slice(None), slice(None)) for name in SMALL}
        for index in reversed(range(len(part.iterations))):
            small = {name: array[index] for name, array in fields.items()}
            tail = _tail(part, index, small, following)
            ahead = ahead_of(small, purpose, tail)
            following = part, int(part.iterations[index]), small["episode"][:, 0], ahead[:, 0]
            use = uses(survey, part, small, purpose)
            worth = _worth_reading(use[:, :-1], survey.steps)
            totals += count_uses(use[:, :-1])
            unread += count_uses(use[:, :-1][~np.repeat(worth, survey.steps, axis=1)[:, : part.steps]])
            lane, piece = np.nonzero(worth)
            if len(lane):
                units.append(Unit(part, index, lane, piece * survey.steps, tail))
        alive()
    return Windows(survey, purpose, tuple(reversed(units)), totals, unread)


def count_uses(use: np.ndarray) -> np.ndarray:
    """True steps by Use, int64 [len(Use)]; seams are none."""
    counts = np.bincount(use.ravel(), minlength=len(Use))
    counts[Use.SEAM] = 0
    return counts


def is_held_out(ids: np.ndarray, share: float) -> np.ndarray:
    """Whether episodes are for validation: a hash (splitmix64) of the id decides, so that it never changes."""
    with np.errstate(over="ignore"):
        x = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) / 2.0**53 < share


def uses(survey: Survey, part: Part, small: Mapping[str, np.ndarray], purpose: Purpose) -> np.ndarray:
    """The Use of every observation of an iteration, uint8 [N, T+1]. What is left out is not validated with either."""
    step_type, ids = small["step_type"], small["episode"]
    use = np.where(is_held_out(ids, purpose.validation), Use.VALIDATION, Use.TRAINING).astype(np.uint8)
    use[lacks_context(step_type, part.context, purpose.context)] = Use.NO_CONTEXT
    if purpose.chosen is not None:
        row = survey.rows(part.archive, ids)
        use[~np.append(purpose.chosen, True)[row]] = Use.LEFT_OUT
        use[row < 0] = Use.UNFINISHED
    use[step_type == StepType.LAST] = Use.SEAM
    return use


def ages(step_type: np.ndarray) -> np.ndarray:
    """Steps since FIRST, int64 [N, T+1]; more than LONG_AGO / 2 where FIRST is not in the iteration."""
    now = np.arange(step_type.shape[1])
    return now - np.maximum.accumulate(np.where(step_type == StepType.FIRST, now, -LONG_AGO), axis=1)


def lacks_context(step_type: np.ndarray, context: int, wanted: int) -> np.ndarray:
    """Where frames before the observation are wanted that an archive of less context does not have, bool [N, T+1]."""
    at_hand = np.arange(step_type.shape[1]) + context
    return (at_hand < wanted) & (ages(step_type) > at_hand)


def ahead_of(small: Mapping[str, np.ndarray], purpose: Purpose, tail: np.ndarray) -> np.ndarray:
    """Return to go and steps to go of every observation, float64 [N, T+1, 2]; nan where the episode's end is unknown."""
    step_type, reward = small["step_type"], small["reward"].astype(np.float64)
    if purpose.reward_clip is not None:
        reward = reward.clip(-purpose.reward_clip, purpose.reward_clip)
    ahead = np.empty((*step_type.shape, 2))
    ahead[:, -1] = tail
    for t in reversed(range(reward.shape[1])):
        ahead[:, t, 0] = reward[:, t] + purpose.gamma * ahead[:, t + 1, 0]
        ahead[:, t, 1] = 1 + ahead[:, t + 1, 1]
        ahead[step_type[:, t] == StepType.LAST, t] = 0.0
    return ahead


def _tail(part: Part, index: int, small: Mapping[str, np.ndarray], following: tuple | None) -> np.ndarray:
    """What lies ahead of each lane's last observation, float64 [N, 2]; `following` is the iteration read before."""
    tail = np.full((part.num_lanes, 2), np.nan)
    if following:
        later, iteration, episode, ahead = following
        goes_on = (later.archive, later.num_lanes, iteration) == (part.archive, part.num_lanes, part.iterations[index] + 1)
        if goes_on:
            same = episode == small["episode"][:, -1]
            tail[same] = ahead[same]
    tail[small["step_type"][:, -1] == StepType.LAST] = 0.0
    return tail


def _worth_reading(use: np.ndarray, steps: int) -> np.ndarray:
    """Which windows of the lanes have a step to learn from or to validate with, bool [N, pieces]. use: [N, T]."""
    return np.logical_or.reduceat(use <= Use.VALIDATION, np.arange(0, use.shape[1], steps), axis=1)


def read_windows(
    segment: Segment, windows: Windows, unit: Unit, pick: Sequence[int], layout: Layout
) -> Iterator[dict[str, np.ndarray]]:
    """The chosen windows of a unit, in order, as the fields of `layout`. pick: which of the unit's windows."""
    lanes = np.unique(unit.lane[pick])
    every = slice(None) if len(lanes) == unit.part.num_lanes else lanes.tolist()
    names = [name for name in layout.table() if name not in (*EXTRAS, *NOT_READ)]
    fields = {name: _field(segment, name, unit.index, every) for name in names}
    ahead = ahead_of(fields, windows.purpose, unit.tail[lanes])
    fields["use"] = uses(windows.survey, unit.part, fields, windows.purpose)
    fields["row"] = windows.survey.rows(unit.part.archive, fields["episode"])
    fields["return_to_go"] = ahead[..., 0].astype(np.float32)
    fields["steps_to_go"] = np.nan_to_num(ahead[..., 1]).astype(np.int32)
    age = ages(fields["step_type"])
    for lane, start in zip(np.searchsorted(lanes, unit.lane[pick]), unit.start[pick]):
        of_lane = {name: array[lane] for name, array in fields.items()}
        yield cut(of_lane, int(start), int(age[lane, start]), unit.part.context, layout)


NOT_READ = ("core", "seed", "collected", "version")
"""Fields that are zero in a window."""


def cut(fields: Mapping[str, np.ndarray], start: int, age: int, context: int, layout: Layout) -> dict[str, np.ndarray]:
    """The window from `start` on of one lane's fields, as `layout` has them. Short of T steps, it ends with LAST.

    age: of observation `start`; context frames older than its episode are blank, as those that are missing.
    context: of the fields.
    """
    T, window = layout.steps, {}
    length = min(T, len(fields["reward"]) - start)
    for name, entry in layout.table().items():
        window[name] = whole = np.zeros(entry.shape, entry.dtype)
        if name in layout.specs.observation:
            before = min(layout.context, start + context, age)
            first = start + context - before
            whole[layout.context - before : layout.context + length + 1] = fields[name][first : start + context + length + 1]
        elif name in fields:
            size = length + len(fields[name]) - len(fields["reward"])  # one more for what belongs to observations
            whole[:size] = fields[name][start : start + size]
    if length < T:
        window["step_type"][length:] = StepType.LAST
        window["use"][length:] = Use.SEAM
    return window


def _field(segment: Segment, name: str, index: int, lanes: slice | list[int]) -> np.ndarray:
    array = segment.part(name, index, lanes)
    if array is None:
        raise UserError(f"{segment.path} lacks the field {name!r}")
    return array
