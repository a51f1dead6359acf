"""What `verify` has to play: the stretches of the chosen episodes, in batches, and what is to be said of the rest."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Union

from mpirl.archive.reader import Segment, segments
from mpirl.errors import UserError
from mpirl.identity import Identity, module_hash, version_of
from mpirl.replay_episodes import nearest
from mpirl.stretches import STEPS, Stretch, Survey, survey

IRRELEVANT = ("torch", "mpi", "mpi4py", "h5py", "config")  # to emulators

Batch = Sequence[Stretch]
Choice = Union[frozenset[int], None]


@dataclass(frozen=True)
class Work:
    """Batches of stretches to be played, and what is said beside the result."""

    batches: list[Batch]
    chosen: Choice
    notes: list[str]

    @property
    def steps(self) -> int:
        return sum(stretch.steps for batch in self.batches for stretch in batch)


def plan(
    archive: Path,
    num_players: int,
    ids: Sequence[int] | None,
    sample: int | float | None,
    alive: Callable[[], None] = lambda: None,
) -> Work:
    """Survey the archive and deal what is to be played: all, the episodes `ids`, or a sample (a number, or a float's share)."""
    found = survey(archive, alive=alive)
    chosen = choose(found, ids, sample, archive)
    stretches = [stretch for stretch in found.stretches if chosen is None or any(id in chosen for id in stretch.ids)]
    notes = [*unplayable(found, chosen), *other_versions(found)]
    if not stretches:
        raise UserError(f"nothing in {archive} can be verified: {'; '.join(notes) or 'it holds no steps'}")
    return Work(dealt(stretches, num_players), chosen, notes)


def choose(found: Survey, ids: Sequence[int] | None, sample: int | float | None, archive: Path) -> Choice:
    """The ids of the episodes to compare; None for all."""
    if ids is None and sample is None:
        return None
    if ids is not None and sample is not None:
        raise UserError("--episodes and --sample contradict: give one of them")
    known = {id for stretch in found.stretches for id in stretch.ids}
    if ids is None:
        whole = sorted(known & ended(archive) - found.unplayable_ids.keys())
        number = round(sample * len(whole)) if isinstance(sample, float) else sample
        return frozenset(random.sample(whole, min(max(number, 1), len(whole))))
    for id in ids:
        if id in found.unplayable_ids and id not in known:
            raise UserError(f"episode {id} cannot be played again: {found.unplayable_ids[id]}")
        if id not in known:
            raise UserError(f"no episode {id} in {archive}: {nearest(id, known)}")
    return frozenset(ids)


def ended(archive: Path) -> set[int]:
    """The ids of the episode table."""
    found: set[int] = set()
    for path in segments(archive):
        with Segment(path) as segment:
            found.update(segment.column("id").tolist())
    return found


def dealt(stretches: Sequence[Stretch], num_players: int) -> list[Batch]:
    """The stretches in batches that are worth making an emulator for, and enough of them for all players."""
    total = sum(stretch.steps for stretch in stretches)
    size = min(STEPS, total / (2 * num_players))
    batches: list[list[Stretch]] = [[]]
    steps = 0
    for stretch in stretches:
        if batches[-1] and steps >= size:
            batches.append([])
            steps = 0
        batches[-1].append(stretch)
        steps += stretch.steps
    return batches


def unplayable(found: Survey, chosen: Choice) -> list[str]:
    if chosen is not None:
        return []
    return [f"not verifiable: {steps:,} steps, {reason}" for reason, steps in found.unplayable.items()]


def other_versions(found: Survey) -> list[str]:
    """Where those who wrote the archive had other versions than this process."""
    notes, items = [], Identity.here("", "").values
    for name, versions in found.versions.items():
        here = str(items.get(name) or version_of(name) or module_hash(name))
        if name not in IRRELEVANT and versions != {here}:
            notes.append(f"other versions: {name} {', '.join(sorted(versions))} made the archive, here it is {here}")
    return notes
