"""The commands `recover` and `restore`: what a killed run had not closed, and the observations of an archive of actions."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from mpirl.archive.journal import Recovered, recover
from mpirl.errors import UserError
from mpirl.progress import Progress
from mpirl.replay_episodes import archive_of
from mpirl.restoring import restore
from mpirl.rundir import CONFIG, RunDirectory
from mpirl.stretches import survey


def add_to(commands: Any) -> None:
    """Add these commands to the program's."""
    recovery = commands.add_parser("recover", help="turn what a killed run had not closed yet into a segment, as a resume does")
    recovery.set_defaults(run=run_recover)
    restoration = commands.add_parser("restore", help="play an archive of actions again into one with observations")
    restoration.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="a new folder for the archive")
    restoration.add_argument("--compression", choices=["gzip", "zstd", "none"], default="gzip")
    restoration.set_defaults(run=run_restore)


def run_recover(options: argparse.Namespace) -> int:
    """The exit code."""
    path: Path = options.archive
    archive = path / "archive" if (path / "archive").is_dir() else path
    if not archive.is_dir():
        raise UserError(f"no run at {path}: name a run directory such as runs/pong/1, or the folder of an archive")
    with locked(archive.resolve().parent):
        found = recover(archive)
    print("\n".join(map(described, found)) or f"nothing to recover in {archive}: no killed run left a journal")
    return 0


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep runs out of their folder; nothing where it is no run's. Raises UserError while one is going."""
    if not (folder / CONFIG).is_file():
        yield
        return
    run = RunDirectory(folder)
    run.lock()
    try:
        yield
    finally:
        run.release()


def described(found: Recovered) -> str:
    torn = "; its last record was cut off, and is lost" if found.torn else ""
    if not found.segment:
        return f"{found.journal}: it held no iteration{torn}"
    first, last = found.iterations[0], found.iterations[-1]
    return f"{found.segment}: {len(found.iterations)} iterations recovered, {first} to {last}{torn}"


def run_restore(options: argparse.Namespace) -> int:
    """The exit code."""
    archive = archive_of(options.archive)
    found = survey(archive)
    total = sum(stretch.steps for stretch in found.stretches) + sum(found.unplayable.values())
    with closing(Progress(total, "steps")) as progress:
        done = restore(archive, options.output, options.compression, progress.add)
    counts = f"{done.iterations:,} iterations, {done.episodes:,} episodes, {done.steps:,} steps"
    print(f"{options.output}: {counts}, all rewards equal")
    if done.unplayable:
        print(f"left out: {done.unplayable:,} steps with no seed point before them in the archive")
    return 0
