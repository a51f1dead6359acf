"""Import: the episodes of a Minari dataset or of a flat HDF5 file become an archive of one lane."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import mpirl
from mpirl.archive.flat_source import FlatSource
from mpirl.archive.minari import DATA, METADATA
from mpirl.archive.minari_metadata import datasets_path
from mpirl.archive.minari_source import MinariSource
from mpirl.archive.sources import Source, SourceEpisode
from mpirl.archive.writer import SegmentWriter
from mpirl.episodes import EpisodeTracker
from mpirl.errors import UserError
from mpirl.specs import ArraySpec, Specs, StepType
from mpirl.trajectory import NO_SEED, Layout, Trajectory, is_step

LONGEST = 512  # steps of an iteration
LARGEST = 16 << 20  # bytes of an iteration's observations

Progress = Callable[[int, int], None]
Slots = dict[str, np.ndarray]


@dataclass(frozen=True)
class Imported:
    """What was made. counts: by the reason, how much was not taken as it is."""

    path: Path
    episodes: int
    steps: int
    counts: Mapping[str, int]


def import_episodes(
    place: str | Path,
    directory: str | Path,
    *,
    specs: Specs | None = None,
    compression: str = "gzip",
    progress: Progress = lambda steps, total: None,
) -> Imported:
    """Write the episodes that `place` names into the new archive `directory`; see docs/archive.md for how.

    place: the name or folder of a Minari dataset, or a flat HDF5 file. specs: of the emulator, where the file's own are
    less exact; they must have its shapes. progress: called with how many steps have just been read, and how many there
    are in all. Raises UserError for what is no such file, and for what an archive cannot hold.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} exists: name a new folder for the archive")
    source = open_source(place)
    if specs:
        source.specs = _fitting(specs, source)
    part = directory.with_name(f"{directory.name}.part")
    with suppress(FileNotFoundError):
        shutil.rmtree(part)
    try:
        episodes, steps = _write(source, part, compression, progress)
        if not episodes:
            raise UserError(f"{source.path} holds no episode with a step")
        with suppress(FileNotFoundError):
            directory.rmdir()
        os.replace(part, directory)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Imported(directory, episodes, steps, {reason: number for reason, number in source.counts.items() if number})


def open_source(place: str | Path) -> Source:
    """What `place` names: a Minari dataset by its name or folder, or a flat HDF5 file."""
    path = Path(place)
    if path.is_file():
        return MinariSource(path.parent) if path.name == DATA and (path.parent / METADATA).exists() else FlatSource(path)
    for folder in (path, datasets_path() / place):
        for data in (folder / "data", folder):
            if (data / METADATA).exists():
                return MinariSource(data)
    raise UserError(
        f"{place} is neither a Minari dataset (a folder with data/{METADATA}, here or in {datasets_path()}) nor an HDF5 file"
    )


def _fitting(specs: Specs, source: Source) -> Specs:
    """The emulator's specs for the source, if the arrays fit."""
    own = source.specs

    def check(name: str, ours: ArraySpec | None, theirs: ArraySpec) -> None:
        same_kind = ours is not None and (ours.is_discrete, ours.is_integer) == (theirs.is_discrete, theirs.is_integer)
        if not same_kind or ours.shape != theirs.shape or (theirs.is_discrete and ours.num_values < theirs.num_values):
            raise UserError(f"{source.path} is not of this emulator: its {name} is {theirs}, the emulator's {ours}")

    for name, spec in own.observation.items():
        check(name, specs.observation.get(name), spec)
    check("action", specs.action, own.action)
    if len(specs.observation) > len(own.observation):
        raise UserError(f"{source.path} is not of this emulator, which has {', '.join(specs.observation)}")
    return replace(specs, extras=own.extras)


def _write(source: Source, directory: Path, compression: str, progress: Progress) -> tuple[int, int]:
    """Numbers of episodes and steps."""
    extras = {name: spec for name, (_, spec) in source.extras.items()}
    frame = sum(spec.nbytes for spec in source.specs.observation.values())
    steps = min(LONGEST, max(1, LARGEST // max(1, frame)), max(1, source.num_steps))
    layout = Layout(source.specs, steps, extras=extras)
    writer = SegmentWriter(directory, layout, _header(source), compression=compression)
    tracker, num_episodes, num_steps = EpisodeTracker([0]), 0, 0
    try:
        for number, slots in enumerate(_iterations(_blocks(source, progress), steps), start=1):
            batch = Trajectory.allocate(layout, 1)
            for name, array in slots.items():
                batch[name][0] = array[: batch[name].shape[1]]
            num_steps += int(np.count_nonzero(is_step(batch["step_type"])))
            batch["collected"][:] = num_steps
            batch["version"][:] = -1  # of no weights that are known
            # After the last episode LAST is repeated, which ends nothing.
            rows = [row for row in tracker.update(number, batch) if slots["step_type"][row["end_step"] - 1] != StepType.LAST]
            num_episodes += len(rows)
            writer.write(number, 0, batch, rows)
    finally:
        writer.close()
    return num_episodes, num_steps


def _header(source: Source) -> dict[str, Any]:
    """No run played these episodes: there is no config, so they cannot be played again."""
    return {
        "config": {},
        "seed": None,
        "lane_rank": [0],
        "lane_host": [""],
        "rank_emulator": [{}],
        "versions": {"mpirl": mpirl.__version__, "h5py": h5py.__version__},
        "source": dict(source.about),
    }


def _blocks(source: Source, progress: Progress) -> Iterator[Slots]:
    """Every episode as L+1 slots: its steps, and the seam behind its last observation."""
    for id, episode in enumerate(source.episodes()):
        length = len(episode.reward)
        if not np.isfinite(episode.reward).all():
            raise UserError(
                f"episode {id} of {source.path} has a reward that is not finite: is it a dataset of views whose archive is "
                "gone? Then make it again, with --copy"
            )
        yield _block(id, length, episode)
        progress(length, source.num_steps)


def _block(id: int, length: int, episode: SourceEpisode) -> Slots:
    step_type = np.full(length + 1, StepType.MID, np.uint8)
    step_type[0], step_type[-1] = StepType.FIRST, StepType.LAST
    seed = np.full(length + 1, NO_SEED, np.int64)
    seed[0] = episode.seed
    discount = np.ones(length + 1, np.float32)
    discount[length - 1] = 0.0 if episode.terminated else 1.0
    at_seam = lambda array: np.concatenate([array, np.zeros_like(array[:1])])
    return {
        **episode.observation,
        **episode.extras,
        "step_type": step_type,
        "action": at_seam(episode.action),
        "log_prob": at_seam(episode.log_prob),
        "reward": at_seam(episode.reward),
        "discount": discount,
        "episode": np.full(length + 1, id, np.int64),
        "seed": seed,
    }


def _iterations(blocks: Iterator[Slots], steps: int) -> Iterator[Slots]:
    """The lane cut into iterations of `steps` slots and one more observation, with which the next begins."""
    held: Slots = {}
    is_first = True
    for block in blocks:
        held = {name: np.concatenate([held[name], block[name]]) for name in block} if held else block
        while len(held["step_type"]) > steps:
            yield {name: array[: steps + 1] for name, array in held.items()}
            held = {name: array[steps:] for name, array in held.items()}
            is_first = False
    if held and (is_first or len(held["step_type"]) > 1):
        yield _padded(held, steps + 1 - len(held["step_type"]))


def _padded(slots: Slots, number: int) -> Slots:
    """With so many seams behind the last episode."""
    ends = {"step_type": StepType.LAST, "discount": 1.0, "episode": slots["episode"][-1], "seed": NO_SEED}
    return {
        name: np.concatenate([array, np.full((number, *array.shape[1:]), ends.get(name, 0), array.dtype)])
        for name, array in slots.items()
    }
